// Package statedir manages the state directory around the store: its names, its lock,
// its permissions, its instance id, and writes that outlive a crash.
package statedir

import (
	"errors"
	"io"
	"io/fs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The state directory:
//
//	LOCK               held while the store is open
//	store/             Pebble
//	store.ours         marks store/ as dinnerbell's
//	instance           the id of the directory; see ReadInstance
//	writer             version of the program that opened it last
//	store.corrupt      why store/ must not be opened again
//	load/              sorted runs of a load under way; removed at Open
//	checkpoints/       see package state, manifest.go
//	restore.tmp/, restored/, replaced-<UTC>/   see package state, restore.go
//	quarantine-<UTC>/  the newest stores that were set aside, for a person to inspect and delete
const (
	StoreName        = "store"
	OursName         = "store.ours"
	CorruptName      = "store.corrupt"
	WriterName       = "writer"
	LoadName         = "load"
	CheckpointsName  = "checkpoints"
	RestoringName    = "restore" + Unfinished
	RestoredName     = "restored"
	ReplacedPrefix   = "replaced-"
	QuarantinePrefix = "quarantine-"

	// Unfinished ends the name of a file or folder that is being made. A rename to the
	// name without this suffix completes it.
	Unfinished = ".tmp"
)

// MakeDir makes dir and the missing directories above it, durably: a directory entry
// is durable only once the directory that holds it is synced.
func MakeDir(fsys vfs.FS, dir string) error {
	if _, err := fsys.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := fsys.PathDir(dir)
	if parent != dir {
		if err := MakeDir(fsys, parent); err != nil {
			return err
		}
	}
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return SyncDir(fsys, parent)
}

// SyncDir makes the entries of a directory durable.
func SyncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Rename renames an entry of dir. The new name is durable when Rename returns.
func Rename(fsys vfs.FS, dir, from, to string) error {
	if err := fsys.Rename(fsys.PathJoin(dir, from), fsys.PathJoin(dir, to)); err != nil {
		return err
	}
	return SyncDir(fsys, dir)
}

// ReadFile reads a whole file.
func ReadFile(fsys vfs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, errors.Join(err, f.Close())
}

// WriteFile makes a file. Its content is durable when WriteFile returns, its name is
// not.
func WriteFile(fsys vfs.FS, name string, content []byte) error {
	f, err := fsys.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
