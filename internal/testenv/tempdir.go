package testenv

import (
	"errors"
	"fmt"
	"os"
)

// TempDir makes a folder below the system's folder for temporary files; the
// caller removes it. Other users may pass through the folder but not list it:
// if this process is root, Postgres runs as another user, who could not reach a
// t.TempDir().
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
