package testenv

import (
	"errors"
	"fmt"
	"os"
)

// TempDir makes a folder below the system's one for temporary files. Other users
// may pass through it, not list it: as root, Postgres runs as another user, who
// could not reach a t.TempDir(). The caller removes it.
func TempDir(prefix string) (string, error) {
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return "", fmt.Errorf("make folder: %w", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return "", errors.Join(fmt.Errorf("open folder: %w", err), os.RemoveAll(dir))
	}
	return dir, nil
}
