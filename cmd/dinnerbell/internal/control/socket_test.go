package control

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSocketPathIsTheShortest(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for in, want := range map[string]string{
		"./data":                     "data/dinnerbell.sock",
		filepath.Join(dir, "data"):   "data/dinnerbell.sock",
		"/s":                         "/s/dinnerbell.sock",
		"../" + filepath.Base(dir):   "dinnerbell.sock",
		strings.Repeat("d", 80) + "": strings.Repeat("d", 80) + "/dinnerbell.sock",
	} {
		if got, err := socketPath(in); err != nil || got != want {
			t.Errorf("socketPath(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	if got, err := socketPath(strings.Repeat("d", 120)); !errors.Is(err, errSocketPath) {
		t.Errorf("a path that does not fit: %q, %v", got, err)
	}
}

func TestSocketIsPrivateAndReplacesAnOldOne(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	// A daemon that was killed leaves its socket behind.
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketName, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(t.Context(), ".")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(socketName)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode().Perm())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(socketName); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an orderly end leaves the socket: %v", err)
	}
}
