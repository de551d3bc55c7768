// Package pebblecheck finds what Pebble does not notice itself: a store with a hole
// in it, and a log that could not be written. It knows Pebble's files, and nothing
// of the rows in them.
package pebblecheck

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/batchrepr"
	pebblerecord "github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/wal"
)

// Where a file of Pebble's is missing or cut off, Pebble may open the store all
// the same, with a hole in it: rows are gone, and what was written after them,
// the position with it, is there. Two kinds of file can leave one. All else is
// checked by Pebble (sizes of tables, checksums of blocks and records).
//
//   - The MANIFEST, if its end is lost: Pebble takes that for a torn write
//     (version_set.go, load: "Break instead of returning an error if the record is
//     corrupted"). Then tables lie in the folder that it does not name.
//   - A log file that was not flushed yet, if newer ones are there.
//
// Both show without reading the rows, so that the start stays short; only a
// store that may have a hole is read as a whole and compared with its
// fingerprint. The last log, cut or gone, leaves no hole: the store is then as
// it was before, position included, and package cdc sees that the slot is ahead.

// MayHaveHole says whether rows may be missing before the position. db is the
// store, opened read-only.
func MayHaveHole(fsys vfs.FS, store string, names []string, db *pebble.DB) (bool, error) {
	if stray, err := hasStrayTables(fsys, store, names, db); stray || err != nil {
		return stray, err
	}
	return MissesLog(fsys, store)
}

// hasStrayTables says whether a listing of the store holds tables that db does not
// know. A crash in the middle of a compaction leaves such too, if it had
// finished one of several. A table without its end does not count: the MANIFEST
// names only what was synced as a whole.
func hasStrayTables(fsys vfs.FS, store string, names []string, db *pebble.DB) (bool, error) {
	levels, err := db.SSTables()
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	live := make(map[string]bool)
	for _, level := range levels {
		for _, table := range level {
			live[fmt.Sprintf("%06d.sst", table.BackingSSTNum)] = true
		}
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") || live[name] {
			continue
		}
		if whole, err := hasFooter(fsys, fsys.PathJoin(store, name)); whole || err != nil {
			return whole, err
		}
	}
	return false, nil
}

// hasFooter says whether a table ends as one does: with Pebble's or RocksDB's
// magic number.
func hasFooter(fsys vfs.FS, name string) (whole bool, err error) {
	f, err := fsys.Open(name)
	if err != nil {
		return false, fmt.Errorf("look at table: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("look at table: %w", err)
	}
	magic := make([]byte, 8)
	if info.Size() < int64(len(magic)) {
		return false, nil
	}
	if _, err := f.ReadAt(magic, info.Size()-int64(len(magic))); err != nil {
		return false, fmt.Errorf("look at table: %w", err)
	}
	const pebbleMagic, rocksMagic = "\xf0\x9f\xaa\xb3\xf0\x9f\xaa\xb3", "\xf7\xcf\xf4\x85\xb7\x41\xe2\x88"
	return string(magic) == pebbleMagic || string(magic) == rocksMagic, nil
}

// MissesLog says whether a log may be missing before another that holds data.
//
// The first one that Pebble replays is the one that the MANIFEST names, or, up
// to the first flush after an Open, the one that was made in that Open, just
// before its OPTIONS file: file numbers only grow. From one log to the next,
// the sequence numbers of the batches go on where they were; only a load that
// was ingested takes some without a log.
func MissesLog(fsys vfs.FS, store string) (bool, error) {
	desc, err := pebble.Peek(store, fsys)
	if err != nil {
		return false, fmt.Errorf("look at store: %w", err)
	}
	first, err := firstUnflushedLog(fsys, desc.ManifestFilename)
	if err != nil {
		return false, err
	}
	logs, err := wal.Scan(wal.Dir{FS: fsys, Dirname: store})
	if err != nil {
		return false, fmt.Errorf("list logs: %w", err)
	}
	logs = slices.DeleteFunc(logs, func(l wal.LogicalLog) bool { return uint64(l.Num) < first })
	var next uint64 // the sequence number that goes on
	for i, l := range logs {
		from, to, some, err := readLogSpan(l, i < len(logs)-1)
		switch {
		case err != nil:
			return false, err
		case !some:
			continue
		case next == 0 && uint64(l.Num) != first && uint64(l.Num) > fileNumber(desc.OptionsFilename):
			return true, nil
		case next != 0 && next != from:
			return true, nil
		}
		next = to
	}
	return false, nil
}

// fileNumber is N of "dir/OPTIONS-N", 0 if there is none.
func fileNumber(name string) uint64 {
	n, err := strconv.ParseUint(name[strings.LastIndexByte(name, '-')+1:], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// firstUnflushedLog reads from a MANIFEST which log is the first that is not flushed. Each
// of its records begins with the fields read here (pebble, VersionEdit.Encode).
func firstUnflushedLog(fsys vfs.FS, manifest string) (first uint64, err error) {
	const tagComparator, tagLogNumber = 1, 2
	f, err := fsys.Open(manifest)
	if err != nil {
		return 0, fmt.Errorf("read MANIFEST: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	edits := pebblerecord.NewReader(f, 0)
	for {
		edit, err := edits.Next()
		if errors.Is(err, io.EOF) || pebblerecord.IsInvalidRecord(err) {
			return first, nil // Pebble's own end too
		}
		if err != nil {
			return 0, fmt.Errorf("read MANIFEST: %w", err)
		}
		in := bufio.NewReader(edit)
		tag, err := binary.ReadUvarint(in)
		if err == nil && tag == tagComparator {
			var n uint64
			if n, err = binary.ReadUvarint(in); err == nil {
				_, err = in.Discard(int(min(n, 1<<10)))
			}
			if err == nil {
				tag, err = binary.ReadUvarint(in)
			}
		}
		if err == nil && tag == tagLogNumber {
			if n, nerr := binary.ReadUvarint(in); nerr == nil {
				first = n
			}
		}
		if err != nil && !errors.Is(err, io.EOF) && !pebblerecord.IsInvalidRecord(err) {
			return 0, fmt.Errorf("read MANIFEST: %w", err)
		}
	}
}

// readLogSpan gives the sequence number of a log's first batch and, if all of it is
// asked for, the one after its last. some is false for a log without batches.
func readLogSpan(l wal.LogicalLog, all bool) (from, to uint64, some bool, err error) {
	in := l.OpenForRead()
	defer func() { err = errors.Join(err, in.Close()) }()
	header := make([]byte, batchrepr.HeaderLen)
	for {
		r, _, err := in.NextRecord()
		if err == nil {
			_, err = io.ReadFull(r, header)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || pebblerecord.IsInvalidRecord(err) {
			return from, to, some, nil // whether that is damage, Pebble decides
		}
		if err != nil {
			return 0, 0, false, fmt.Errorf("read log %d: %w", l.Num, err)
		}
		h, _ := batchrepr.ReadHeader(header)
		if !some {
			from, some = uint64(h.SeqNum), true
		}
		if to = uint64(h.SeqNum) + uint64(h.Count); !all {
			return from, to, some, nil
		}
	}
}

// IsPebbleStore says whether a directory's names are those of a Pebble store
// that was opened at least once.
func IsPebbleStore(names []string) bool {
	for _, name := range names {
		if strings.HasPrefix(name, "MANIFEST-") || strings.HasPrefix(name, "marker.manifest.") || name == "CURRENT" {
			return true
		}
	}
	return false
}
