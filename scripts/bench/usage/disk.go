package usage

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
)

// DiskUsage returns the size of a folder on disk, in bytes.
func DiskUsage(dir string) (float64, error) {
	sum := float64(0)
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		const block = 512 // unit of st_blocks on every file system
		if sys, ok := info.Sys().(*syscall.Stat_t); ok && !seen[sys.Ino] {
			seen[sys.Ino] = true // a file that several checkpoints link counts once
			sum += float64(sys.Blocks) * block
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("measure folder: %w", err)
	}
	return sum, nil
}
