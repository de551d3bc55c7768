package envtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// ReplaceFile replaces a file at once, so that a reader finds the old text or the new one.
// A replaced file keeps its owner: a server that is another user still reads its key.
func ReplaceFile(t testing.TB, path string, text []byte) {
	t.Helper()
	next := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".next")
	if err := os.WriteFile(next, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if old, err := os.Stat(path); err == nil {
		giveTo(t, old, next)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

// GiveToOwner gives files to the owner of a folder.
func GiveToOwner(t testing.TB, folder string, files ...string) {
	t.Helper()
	info, err := os.Stat(folder)
	if err != nil {
		t.Fatal(err)
	}
	giveTo(t, info, files...)
}

func giveTo(t testing.TB, info fs.FileInfo, files ...string) {
	t.Helper()
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Skip("no owners of files")
	}
	for _, file := range files {
		if err := os.Chown(file, int(owner.Uid), int(owner.Gid)); err != nil {
			t.Fatal(err)
		}
	}
}
