package state

import (
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// logFS ends the process as soon as a write to Pebble's log fails. Pebble ends
// there too, at some later point: with a call of Fatalf, with a panic, or with an
// unlock of what is not locked (db.go, rotateWAL), which nothing can catch and
// which says nothing. The same for a folder that cannot be synced: a new log
// would not be found again.
type logFS struct {
	vfs.FS
	failed func(what string, err error) error // returns the error that Pebble gets, if it returns
}

// check gives an error to failed.
func (f *logFS) check(what string, err error) error {
	if err == nil {
		return nil
	}
	return f.failed(what, err)
}

func isLog(name string) bool { return strings.HasSuffix(name, ".log") }

// Create implements vfs.FS.
func (f *logFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	return f.log(name, file, err)
}

// ReuseForWrite implements vfs.FS.
func (f *logFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.ReuseForWrite(from, to, c)
	return f.log(to, file, err)
}

func (f *logFS) log(name string, file vfs.File, err error) (vfs.File, error) {
	if !isLog(name) {
		return file, err
	}
	if err := f.check("make log", err); err != nil {
		return nil, err
	}
	return logFile{file, f}, nil
}

// OpenDir implements vfs.FS.
func (f *logFS) OpenDir(name string) (vfs.File, error) {
	dir, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return logFile{dir, f}, nil
}

// logFile is a log, or the folder that holds it.
type logFile struct {
	vfs.File
	fs *logFS
}

// Write implements vfs.File.
func (f logFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	return n, f.fs.check("write log", err)
}

// Sync implements vfs.File.
func (f logFile) Sync() error { return f.fs.check("sync log", f.File.Sync()) }

// SyncData implements vfs.File.
func (f logFile) SyncData() error { return f.fs.check("sync log", f.File.SyncData()) }

// SyncTo implements vfs.File.
func (f logFile) SyncTo(length int64) (bool, error) {
	full, err := f.File.SyncTo(length)
	return full, f.fs.check("sync log", err)
}
