package envtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Root returns the repository's folder: the nearest folder with a go.mod above
// the test.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("no go.mod above the test's folder")
	return ""
}

// Binary builds dinnerbell once per test binary and returns its path, for tests
// that run and kill the daemon as a process. $TESTENV_BINARY names a binary
// that is built already.
func Binary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("TESTENV_BINARY"); path != "" {
		return path
	}
	servers.mu.Lock()
	defer servers.mu.Unlock()
	if servers.binary != "" {
		return servers.binary
	}
	dir, err := servers.folderLocked()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "dinnerbell")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "dinnerbell/cmd/dinnerbell")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatal(fmt.Errorf("build dinnerbell: %w\n%s", err, out))
	}
	servers.binary = path
	return path
}
