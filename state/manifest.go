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
//	checkpoints/<id>/manifest   what it is; see below
//	checkpoints/<id>/store/     Pebble's own checkpoint; hard links to the tables
//	checkpoints/<name>.tmp/     unfinished, or on its way out; removed at Open
//
// The manifest is JSON behind a line with the xxHash64 of that JSON, in
// hexadecimal. It is only ever replaced by a rename.
const (
	manifestName = "manifest"

	// idFormat makes ids that sort by time: 20260131T080000.000Z.
	idFormat = "20060102T150405.000Z"
)

// Cause is why a checkpoint was made.
type Cause string

// The causes. The newest few of the first two are kept, and one of the third.
const (
	CauseTimed Cause = "timed" // state.checkpoint.every
	CauseAsked Cause = "asked" // an operator
	CauseWAL   Cause = "wal"   // so that WAL on the source can go
)

// Manifest tells of one checkpoint.
type Manifest struct {
	ID    string    `json:"id"`
	Made  time.Time `json:"made"`
	Cause Cause     `json:"cause"`
	// Writer is the version of the program that made it.
	Writer string `json:"writer"`
	// Format is that of the store in it.
	Format uint32 `json:"format"`
	// Source and EndLSN say what the rows show, and as of where. EndLSN moves on
	// while nothing changes the rows.
	Source Source `json:"source"`
	EndLSN id.LSN `json:"end_lsn"`
	// Gen is the load that the rows came with; Subscriptions and Sum are of the
	// rows (fingerprint.go).
	Gen           uint32 `json:"generation"`
	Subscriptions int64  `json:"subscriptions"`
	Sum           uint64 `json:"sum,string"`
	// NextOffsets are those of the campaigns topic, by partition, from just
	// before the checkpoint was made: what its maker knew.
	NextOffsets map[int32]int64 `json:"next_offsets,omitempty"`
	// Files are those of the store, by name, and their sizes.
	Files map[string]int64 `json:"files"`
}

// Bytes is the size of the store. Most of it is shared, with the store in use
// and with other checkpoints, as long as they hold the same tables.
func (m *Manifest) Bytes() int64 {
	var n int64
	for _, size := range m.Files {
		n += size
	}
	return n
}

// Folder is where the store is, given the state directory.
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

// ReadManifest reads what checkpoint id of a state directory is. It needs no
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

// ListCheckpoints gives the checkpoints of a state directory, the oldest first.
// It needs no lock. Those whose manifest cannot be read are told of in the
// error; the others are returned beside it.
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
		case errors.Is(err, ErrNoCheckpoint): // it was removed meanwhile
		case err != nil:
			errs = append(errs, err)
		default:
			list = append(list, *m)
		}
	}
	return list, errors.Join(errs...)
}

// checkpointIDs gives the ids of what was completed, in order.
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
