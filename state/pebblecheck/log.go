package pebblecheck

import (
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// watchedFS gives every error in a write to Pebble's log to failed, as soon as it
// occurs. Pebble ends the process there too, at some later point: with a call of
// Fatalf, with a panic, or with an unlock of a mutex that is not locked (db.go,
// rotateWAL), which nothing can catch and which names no cause. The same holds for
// a folder that cannot be synced: after a crash, a new log would be missing.
type watchedFS struct {
	vfs.FS
	failed func(what string, err error) error
}

// WatchLog returns fs, where every failed write to Pebble's log is reported to
// failed. failed may end the process, or return the error that Pebble gets.
func WatchLog(fs vfs.FS, failed func(what string, err error) error) vfs.FS {
	return &watchedFS{fs, failed}
}

// reportFailure passes an error to failed.
func (f *watchedFS) reportFailure(what string, err error) error {
	if err == nil {
		return nil
	}
	return f.failed(what, err)
}

func isLogName(name string) bool { return strings.HasSuffix(name, ".log") }

// Create implements vfs.FS.
func (f *watchedFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	return f.wrapLog(name, file, err)
}

// ReuseForWrite implements vfs.FS.
func (f *watchedFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.ReuseForWrite(from, to, c)
	return f.wrapLog(to, file, err)
}

func (f *watchedFS) wrapLog(name string, file vfs.File, err error) (vfs.File, error) {
	if !isLogName(name) {
		return file, err
	}
	if err := f.reportFailure("make log", err); err != nil {
		return nil, err
	}
	return watchedFile{file, f}, nil
}

// OpenDir implements vfs.FS.
func (f *watchedFS) OpenDir(name string) (vfs.File, error) {
	dir, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return watchedFile{dir, f}, nil
}

// watchedFile is a log, or the folder of the logs.
type watchedFile struct {
	vfs.File
	fs *watchedFS
}

// Write implements vfs.File.
func (f watchedFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	return n, f.fs.reportFailure("write log", err)
}

// Sync implements vfs.File.
func (f watchedFile) Sync() error { return f.fs.reportFailure("sync log", f.File.Sync()) }

// SyncData implements vfs.File.
func (f watchedFile) SyncData() error { return f.fs.reportFailure("sync log", f.File.SyncData()) }

// SyncTo implements vfs.File.
func (f watchedFile) SyncTo(length int64) (bool, error) {
	full, err := f.File.SyncTo(length)
	return full, f.fs.reportFailure("sync log", err)
}
