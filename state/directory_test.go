package state

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dinnerbell/state/statedir"
)

// All files in the state directory are closed to other users, also files that an earlier
// version left open.
func TestStateIsPrivate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	use := func() {
		t.Helper()
		s, err := Open(dir, testOptions())
		if err != nil {
			t.Fatal(err)
		}
		loadRows(t, s, 1000, makeIDs(2, 1), 10)
		checkpoint(t, s, CauseAsked)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	each := func(do func(path string, info fs.FileInfo) error) {
		t.Helper()
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			return do(path, info)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	files := 0
	private := func(path string, info fs.FileInfo) error {
		files++
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %04o", path, info.Mode().Perm())
		}
		return nil
	}
	use()
	each(private)
	each(func(path string, info fs.FileInfo) error {
		if path == dir {
			return nil
		}
		return os.Chmod(path, info.Mode().Perm()|0o055)
	})
	use()
	each(private)
	if files < 20 {
		t.Errorf("looked at %d files", files)
	}
}

// Open refuses a directory in which other users can meddle, and changes nothing in it.
func TestUnsafeDirectory(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(dir, victim string) error
		want  string
	}{
		"open to all":            {func(dir, _ string) error { return os.Chmod(dir, 0o777) }, "chmod o-w"},
		"open to all and sticky": {func(dir, _ string) error { return os.Chmod(dir, 0o777|os.ModeSticky) }, "chmod o-w"},
		"LOCK is a link":         {func(dir, victim string) error { return os.Symlink(victim, filepath.Join(dir, statedir.LockName)) }, "rm "},
		"LOCK leads nowhere": {func(dir, victim string) error {
			return os.Symlink(victim+"-none", filepath.Join(dir, statedir.LockName))
		}, "rm "},
		"LOCK has another name": {func(dir, victim string) error { return os.Link(victim, filepath.Join(dir, statedir.LockName)) }, "rm "},
		"instance is a link":    {func(dir, victim string) error { return os.Symlink(victim, filepath.Join(dir, statedir.InstanceName)) }, "rm "},
		"store is a link": {func(dir, victim string) error {
			return os.Symlink(filepath.Dir(victim), filepath.Join(dir, statedir.StoreName))
		}, "rm "},
		"checkpoints are a link": {func(dir, victim string) error {
			return os.Symlink(filepath.Dir(victim), filepath.Join(dir, statedir.CheckpointsName))
		}, "rm "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, victim := t.TempDir(), filepath.Join(t.TempDir(), "victim")
			if err := errors.Join(os.WriteFile(victim, []byte("precious"), 0o600), c.spoil(dir, victim)); err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadDir(dir)
			if s, err := Open(dir, testOptions()); !errors.Is(err, statedir.ErrUnsafe) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("Open: %v", err)
				if err == nil {
					_ = s.Close()
				}
			}
			if _, _, err := Restore(t.Context(), dir, "20260101T000000.000Z", testOptions()); !errors.Is(err, statedir.ErrUnsafe) {
				t.Errorf("Restore: %v", err)
			}
			after, _ := os.ReadDir(dir)
			beside, _ := os.ReadDir(filepath.Dir(victim))
			if text, err := os.ReadFile(victim); err != nil || string(text) != "precious" || len(after) != len(before) || len(beside) != 1 {
				t.Errorf("the victim is %q, %v; %d entries, were %d; %d beside the victim", text, err, len(after), len(before), len(beside))
			}
		})
	}
}

// An instance id stays with its directory. A copy of the directory, and the directory on
// another machine with the same disk, get a new id.
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
		if len(s.Instance()) != statedir.InstanceLen {
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
	file := filepath.Join(dir, statedir.InstanceName)
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
