package statedir

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOwnerOfDirectory: which user's process may use a directory of which owner.
func TestOwnerOfDirectory(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give directories away")
	}
	const us, other, group = 12345, 23456, 12345
	for name, c := range map[string]struct {
		user, owner int
		mode        os.FileMode
		parent      os.FileMode
		entry       int // owner of a LOCK and a store in it; 0: there are none
		refused     bool
	}{
		"ours":                         {us, us, 0o755, 0o755, 0, false},
		"ours and our group's":         {us, us, 0o775, 0o755, 0, false},
		"a volume of kubelet's":        {us, 0, 0o775 | os.ModeSetgid, 0o755, 0, false},
		"and used before":              {us, 0, 0o775 | os.ModeSetgid, 0o755, us, false},
		"and used by another user":     {us, 0, 0o775 | os.ModeSetgid, 0o755, other, true},
		"another user's":               {us, other, 0o775, 0o755, 0, true},
		"root in a user's folder":      {0, us, 0o755, 0o755, 0, true},
		"root in a user's volume":      {0, us, 0o755, 0o755, us, false},
		"root in a folder under /tmp":  {0, us, 0o755, 0o777 | os.ModeSticky, us, true},
		"root, with a stranger's file": {0, us, 0o775, 0o755, other, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parent := filepath.Join(t.TempDir(), "parent")
			dir := filepath.Join(parent, "state")
			store := filepath.Join(dir, StoreName)
			err := os.MkdirAll(dir, 0o755)
			if c.entry != 0 {
				lock := filepath.Join(dir, LockName)
				err = errors.Join(err, os.Mkdir(store, 0o700), os.Chown(store, c.entry, group), os.WriteFile(lock, nil, 0o600), os.Chown(lock, c.entry, group))
			}
			err = errors.Join(err, os.Chown(dir, c.owner, group), os.Chmod(dir, c.mode), os.Chmod(parent, c.parent))
			if err != nil {
				t.Fatal(err)
			}
			if err := checkDirFor(dir, c.user); errors.Is(err, ErrUnsafe) != c.refused || err != nil && !c.refused {
				t.Errorf("user %d in a directory of %d: %v, want refused %v", c.user, c.owner, err, c.refused)
			}
		})
	}
}

// A file or a device is no state directory, and nobody is told to change its mode.
func TestDirectoryThatIsNone(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/dev/full", "/etc/passwd"} {
		if err := Examine(path); err == nil || !strings.Contains(err.Error(), "is not a directory") || strings.Contains(err.Error(), "chmod") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
