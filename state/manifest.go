package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"dinnerbell/state/id"
	"dinnerbell/state/statedir"
)

// The folder of checkpoints, in the state directory:
//
//	checkpoints/<id>/manifest   describes the checkpoint; see below
//	checkpoints/<id>/store/     Pebble's own checkpoint; hard links to the tables
//	checkpoints/<name>.tmp/     unfinished, or half removed; Open removes it
//
// The manifest is a line with the xxHash64 of a JSON text, in hexadecimal, and that
// JSON text. Only a rename ever replaces it.
const (
	manifestName = "manifest"

	// idFormat makes ids that sort by time: 20260131T080000.000Z.
	idFormat = "20060102T150405.000Z"
)

// Cause is why a checkpoint was made.
type Cause string

// The causes. The store keeps the newest few checkpoints of each of the first two, and
// one of the third.
const (
	CauseTimed Cause = "timed" // state.checkpoint.every
	CauseAsked Cause = "asked" // an operator's command
	CauseWAL   Cause = "wal"   // to let the source remove WAL
)

// Manifest describes one checkpoint.
type Manifest struct {
	ID    string    `json:"id"`
	Made  time.Time `json:"made"`
	Cause Cause     `json:"cause"`
	// Writer is the version of the program that made it.
	Writer string `json:"writer"`
	// Format is the format version of its store.
	Format uint32 `json:"format"`
	// Source is the table that the rows mirror, EndLSN the position of the rows. EndLSN
	// moves on while nothing changes the rows.
	Source Source `json:"source"`
	EndLSN id.LSN `json:"end_lsn"`
	// LogEnd is the position up to which the subscription log in the store is complete:
	// EndLSN, or less where EndLSN has moved past transactions that left the rows as they
	// were; 0: there is no log.
	LogEnd id.LSN `json:"log_end,omitempty"`
	// Gen is the load with which the rows came; Subscriptions and Sum are the number
	// and the fingerprint of the rows (fingerprint.go).
	Gen           uint32 `json:"generation"`
	Subscriptions int64  `json:"subscriptions"`
	Sum           uint64 `json:"sum,string"`
	// NextOffsets are the next offsets of the campaigns topic, by partition, that the
	// caller knew just before the checkpoint was made.
	NextOffsets map[int32]int64 `json:"next_offsets,omitempty"`
	// Files lists the files of the store by name, with their sizes.
	Files map[string]int64 `json:"files"`
}

// Bytes returns the size of the checkpoint's store. Most of its files are shared with
// the store in use and with other checkpoints, as long as these hold the same tables.
func (m *Manifest) Bytes() int64 {
	var n int64
	for _, size := range m.Files {
		n += size
	}
	return n
}

// Folder returns the folder of the checkpoint's store in the state directory dir.
func (m *Manifest) Folder(dir string) string {
	return filepath.Join(dir, statedir.CheckpointsName, m.ID, statedir.StoreName)
}

func (m *Manifest) encodeManifest() ([]byte, error) {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return fmt.Appendf(nil, "%016x\n%s\n", xxhash.Sum64(text), text), nil
}

func parseManifest(b []byte) (*Manifest, error) {
	sum, text, ok := bytes.Cut(b, []byte{'\n'})
	text = bytes.TrimSuffix(text, []byte{'\n'})
	if v, err := strconv.ParseUint(string(sum), 16, 64); !ok || err != nil || v != xxhash.Sum64(text) {
		return nil, fmt.Errorf("%w: its manifest does not have its checksum", ErrBadCheckpoint)
	}
	m := &Manifest{}
	if err := json.Unmarshal(text, m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadCheckpoint, err)
	}
	return m, nil
}

// ReadManifest reads the manifest of checkpoint id in a state directory. It needs no
// lock. Errors wrap [ErrNoCheckpoint] or [ErrBadCheckpoint].
func ReadManifest(dir, id string) (*Manifest, error) { return readManifest(vfs.Default, dir, id) }

func readManifest(fsys vfs.FS, dir, id string) (*Manifest, error) {
	if _, err := time.Parse(idFormat, id); err != nil {
		return nil, fmt.Errorf("%w %q: an id looks like %s", ErrNoCheckpoint, id, idFormat)
	}
	of := fsys.PathJoin(dir, statedir.CheckpointsName, id)
	b, err := statedir.ReadFile(fsys, fsys.PathJoin(of, manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := fsys.Stat(of); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w %s in %s", ErrNoCheckpoint, id, dir)
		}
		return nil, fmt.Errorf("read checkpoint %s: %w: it has no manifest", id, ErrBadCheckpoint)
	}
	if err != nil {
		return nil, fmt.Errorf("read checkpoint %s: %w", id, err)
	}
	m, err := parseManifest(b)
	if err == nil && m.ID != id {
		err = fmt.Errorf("%w: its manifest is that of %s", ErrBadCheckpoint, m.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("read checkpoint %s: %w", id, err)
	}
	return m, nil
}

// ListCheckpoints returns the checkpoints of a state directory, the oldest first. It
// needs no lock. The error names the checkpoints whose manifest cannot be read; the
// others are returned beside it.
func ListCheckpoints(dir string) ([]Manifest, error) { return listCheckpoints(vfs.Default, dir) }

func listCheckpoints(fsys vfs.FS, dir string) ([]Manifest, error) {
	ids, err := checkpointIDs(fsys, dir)
	if err != nil {
		return nil, err
	}
	var list []Manifest
	var errs []error
	for _, id := range ids {
		m, err := readManifest(fsys, dir, id)
		switch {
		case errors.Is(err, ErrNoCheckpoint): // somebody removed it since the listing
		case err != nil:
			errs = append(errs, err)
		default:
			list = append(list, *m)
		}
	}
	return list, errors.Join(errs...)
}

// checkpointIDs returns the ids of completed checkpoints, in order.
func checkpointIDs(fsys vfs.FS, dir string) ([]string, error) {
	names, err := fsys.List(fsys.PathJoin(dir, statedir.CheckpointsName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list checkpoints: %w", err)
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		_, err := time.Parse(idFormat, name)
		return err != nil || strings.HasSuffix(name, statedir.Unfinished)
	})
	slices.Sort(names)
	return names, nil
}
