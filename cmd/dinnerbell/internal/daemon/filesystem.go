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
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	abs, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	device, at := "", ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// proc_pid_mountinfo(5): 36 35 98:0 /root /mount/point options [tags] - type device options
		before, after, ok := strings.Cut(lines.Text(), " - ")
		front, back := strings.Fields(before), strings.Fields(after)
		if !ok || len(front) < 5 || len(back) < 2 {
			continue
		}
		if point := front[4]; len(point) >= len(at) && isWithin(abs, point) { // a later one lies over an earlier one
			device, at = back[1], point
		}
	}
	if at == "" {
		return ""
	}
	return " (" + device + ", mounted on " + at + ")"
}

func isWithin(path, dir string) bool {
	return dir == "/" || path == dir || strings.HasPrefix(path, dir+"/")
}
