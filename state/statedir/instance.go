package statedir

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// InstanceName names a file with two words: the directory's instance id, and the
// place for which the id was made.
const InstanceName = "instance"

// InstanceLen is the length of an instance id.
const InstanceLen = 16

// ReadInstance returns the directory's id. It makes a new one if there is none or if
// the id was made for another place, as in a copy of a directory.
func ReadInstance(fsys vfs.FS, dir string) (string, error) {
	here, err := placeOf(fsys, dir)
	if err != nil {
		return "", err
	}
	name := fsys.PathJoin(dir, InstanceName)
	text, err := ReadFile(fsys, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if words := strings.Fields(string(text)); isInstance(words, here) {
		return words[0], nil
	}
	var b [InstanceLen / 2]byte
	_, _ = rand.Read(b[:]) // never fails
	id := hex.EncodeToString(b[:])
	err = WriteFile(fsys, name+Unfinished, fmt.Appendf(nil, "%s %s\n", id, here))
	if err == nil {
		err = Rename(fsys, dir, InstanceName+Unfinished, InstanceName)
	}
	return id, err
}

// FindInstance returns the directory's id, "" if ReadInstance would make a new one.
func FindInstance(dir string) string {
	here, err := placeOf(vfs.Default, dir)
	if err != nil {
		return ""
	}
	text, err := os.ReadFile(filepath.Join(dir, InstanceName))
	if words := strings.Fields(string(text)); err == nil && isInstance(words, here) {
		return words[0]
	}
	return ""
}

// isInstance reports whether the words of the file are an id that was made for a place.
func isInstance(words []string, place string) bool {
	return len(words) == 2 && len(words[0]) == InstanceLen && words[1] == place
}

// placeOf returns a text that no other directory in use at the same time shares, not
// even a clone on another machine: the boot id of this machine, which no other machine
// shares, and the directory's device and inode number. Each boot gives another place.
func placeOf(fsys vfs.FS, dir string) (string, error) {
	if vfs.Root(fsys) != vfs.Default {
		return "memory", nil // a test's file system
	}
	info, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id") // random(4)
	if err != nil {
		boot = []byte("unknown") // not Linux
	}
	number := ""
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		number = fmt.Sprintf("%x-%x", st.Dev, st.Ino)
	}
	return strings.TrimSpace(string(boot)) + "/" + number, nil
}
