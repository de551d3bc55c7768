package state

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An id stays with its directory. A copy of the directory, and the directory on
// a machine with the same disk, get another.
func TestInstance(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	instance := func(dir string) string {
		t.Helper()
		s, err := Open(dir, testOptions())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if len(s.Instance()) != InstanceLen {
			t.Fatalf("instance is %q", s.Instance())
		}
		return s.Instance()
	}
	first := instance(dir)
	if again := instance(dir); again != first {
		t.Errorf("opened again, the instance is %s, was %s", again, first)
	}
	twin := dir + "-copy"
	if err := os.CopyFS(twin, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if copied := instance(twin); copied == first {
		t.Error("a copy of the directory has the same instance")
	}
	file := filepath.Join(dir, instanceName)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	boot, at, _ := strings.Cut(strings.Fields(string(text))[1], "/")
	for _, elsewhere := range []string{"another-boot/" + at, boot + "/0-2", ""} {
		if err := os.WriteFile(file, []byte(first+" "+elsewhere), 0o600); err != nil {
			t.Fatal(err)
		}
		if moved := instance(dir); moved == first {
			t.Errorf("made for %q, the instance is still %s", elsewhere, moved)
		}
	}
}
