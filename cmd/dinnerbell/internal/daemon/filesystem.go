package daemon

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
)

// filesystemOf names the file system of a folder, for the person who looks after
// the disk: " (/dev/sda1, mounted on /var)". It is empty on systems without
// /proc/self/mountinfo.
func filesystemOf(dir string) string {
	m, ok := FindMount(dir)
	if !ok {
		return ""
	}
	return " (" + m.Device + ", mounted on " + m.Point + ")"
}

// Mount is a mounted file system.
type Mount struct {
	Device, Point string
	Type          string // "ext4", "nfs4", "overlay"
}

// FindMount returns the file system that a path lies on; false on systems without
// /proc/self/mountinfo.
func FindMount(path string) (found Mount, ok bool) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Mount{}, false
	}
	defer f.Close()
	abs, err := filepath.Abs(path)
	if err != nil {
		return Mount{}, false
	}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// proc_pid_mountinfo(5): 36 35 98:0 /root /mount/point options [tags] - type device options
		before, after, ok := strings.Cut(lines.Text(), " - ")
		front, back := strings.Fields(before), strings.Fields(after)
		if !ok || len(front) < 5 || len(back) < 2 {
			continue
		}
		if point := front[4]; len(point) >= len(found.Point) && isWithin(abs, point) { // a later one lies over an earlier one
			found = Mount{Device: back[1], Point: point, Type: back[0]}
		}
	}
	return found, found.Point != ""
}

func isWithin(path, dir string) bool {
	return dir == "/" || path == dir || strings.HasPrefix(path, dir+"/")
}
