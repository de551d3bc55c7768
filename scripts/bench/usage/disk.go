package usage

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
)

// DiskUsage is what a folder takes on disk, in bytes.
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
		const block = 512 // unit of st_blocks, whatever the file system's
		if sys, ok := info.Sys().(*syscall.Stat_t); ok && !seen[sys.Ino] {
			seen[sys.Ino] = true // a file of several checkpoints takes its place once
			sum += float64(sys.Blocks) * block
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("measure folder: %w", err)
	}
	return sum, nil
}
