// Package pebblecheck finds two faults that Pebble does not notice itself: a store
// with a hole in it, and a log that could not be written. It knows the files of
// Pebble, and nothing of the rows in them.
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

// Where a file of Pebble's is missing or cut off, Pebble may still open the store,
// with a hole in it: rows are gone, but later writes, the position among them, are
// there. Two kinds of file can leave a hole. Pebble checks all others (sizes of
// tables, checksums of blocks and records).
//
//   - The MANIFEST, if its end is lost: Pebble takes the loss for a torn write
//     (version_set.go, load: "Break instead of returning an error if the record is
//     corrupted"). Then the folder holds tables that the MANIFEST does not name.
//   - A log file that was not flushed yet, if newer log files are there.
//
// Both can be found without reading the rows, so that the start stays short: only a
// store that may have a hole is read as a whole and compared with its fingerprint.
// The last log leaves no hole when it is cut off or gone: the store is then as it
// was earlier, position included, and package cdc notices that the slot is ahead.

// MayHaveHole reports whether rows may be missing before the position. names lists
// the store's files; db is the store, opened read-only.
func MayHaveHole(fsys vfs.FS, store string, names []string, db *pebble.DB) (bool, error) {
	if stray, err := hasStrayTables(fsys, store, names, db); stray || err != nil {
		return stray, err
	}
	return MissesLog(fsys, store)
}

// hasStrayTables reports whether names lists tables that db does not know. A crash
// in the middle of a compaction leaves such tables too, if the compaction had
// finished one of several. A table without its end does not count: the MANIFEST
// names only tables that were synced as a whole.
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

// hasFooter reports whether a table file ends with Pebble's or RocksDB's magic
// number.
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

// MissesLog reports whether a log may be missing before another log that holds data.
//
// The first log that Pebble replays is the log that the MANIFEST names or, up to the
// first flush after an Open, the log that this Open made just before its OPTIONS
// file: file numbers only grow. The sequence numbers of the batches continue from
// one log to the next; only an ingested load takes numbers without a log.
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
	var next uint64 // the sequence number with which the next log must begin
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

// fileNumber returns N of "dir/OPTIONS-N", 0 if there is no number.
func fileNumber(name string) uint64 {
	n, err := strconv.ParseUint(name[strings.LastIndexByte(name, '-')+1:], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// firstUnflushedLog reads the number of the first log that is not flushed from a
// MANIFEST. Each record of a MANIFEST begins with the fields that are read here
// (pebble, VersionEdit.Encode).
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
			return first, nil // Pebble stops here too
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

// readLogSpan returns the sequence number of a log's first batch and, with all, the
// number after its last batch. some is false for a log without batches.
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
			return from, to, some, nil // Pebble decides whether this is damage
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

// IsPebbleStore reports whether a directory with these names is a Pebble store that
// was opened at least once.
func IsPebbleStore(names []string) bool {
	for _, name := range names {
		if strings.HasPrefix(name, "MANIFEST-") || strings.HasPrefix(name, "marker.manifest.") || name == "CURRENT" {
			return true
		}
	}
	return false
}
