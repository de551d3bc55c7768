package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/internal/precondition"
	"dinnerbell/state"
)

// writeFile makes a file with its folders.
func writeFile(t *testing.T, text string, path ...string) {
	t.Helper()
	name := filepath.Join(path...)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// The smallest limit of all groups above the process counts, in both versions of control
// groups.
func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		groups string
		files  map[string]string
		want   int64
		where  string
	}{
		"none":            {"0::/system.slice/d.service\n", nil, 0, ""},
		"no limit":        {"0::/d\n", map[string]string{"d/memory.max": "max\n", "memory.max": "max\n"}, 0, ""},
		"of the service":  {"0::/system.slice/d.service\n", map[string]string{"system.slice/d.service/memory.max": "268435456\n"}, 256 << 20, "system.slice/d.service/memory.max"},
		"of one above":    {"0::/a/b\n", map[string]string{"a/b/memory.max": "400000000\n", "a/memory.max": "100000000\n"}, 100_000_000, "a/memory.max"},
		"version 1":       {"5:memory:/docker/x\n4:cpu:/y\n", map[string]string{"memory/docker/x/memory.limit_in_bytes": "300000000\n"}, 300_000_000, "memory/docker/x/memory.limit_in_bytes"},
		"version 1, none": {"5:memory:/\n", map[string]string{"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0, ""},
		"nonsense":        {"what\n", nil, 0, ""},
	} {
		dir := t.TempDir()
		l := limits{pid: "7", proc: filepath.Join(dir, "proc"), cgroups: filepath.Join(dir, "cgroup")}
		writeFile(t, c.groups, l.proc, "7", "cgroup")
		for file, text := range c.files {
			writeFile(t, text, l.cgroups, file)
		}
		got, where, err := l.readMemoryLimit()
		if err != nil || got != c.want || c.want > 0 && where != filepath.Join(l.cgroups, c.where) {
			t.Errorf("%s: %d in %s, %v; want %d in %s", name, got, where, err, c.want, c.where)
		}
	}
	if _, _, err := (limits{pid: "7", proc: t.TempDir()}).readMemoryLimit(); err == nil {
		t.Error("a system without control groups has no error")
	}
}

func TestOpenFilesOfTheRunningDaemon(t *testing.T) {
	t.Parallel()
	l := limits{pid: "7", proc: t.TempDir()}
	writeFile(t, "Limit                     Soft Limit           Hard Limit           Units\nMax open files            256                  512                  files\n", l.proc, "7", "limits")
	if n := l.readFileLimit(); n != 512 {
		t.Errorf("%d, want the hard limit, to which Go raises the other", n)
	}
	writeFile(t, "Max open files            unlimited            "+"unlimited            files\n", l.proc, "7", "limits")
	if n := l.readFileLimit(); n != 0 {
		t.Errorf("no limit reads as %d", n)
	}
	if n := systemLimits("").readFileLimit(); n == 0 {
		t.Error("this process has no limit")
	}
}

// The judgements about facts of a machine that a test cannot make.
func TestJudgements(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	for name, c := range map[string]struct {
		found []finding
		level precondition.Level
		text  string
	}{
		"local disk":          {judgeFileSystem(daemon.Mount{Type: "xfs", Device: "/dev/sda1", Point: "/var"}, "d"), precondition.OK, "xfs (/dev/sda1, mounted on /var)"},
		"NFS":                 {judgeFileSystem(daemon.Mount{Type: "nfs4", Device: "nas:/x"}, "d"), precondition.Warn, "on nfs4"},
		"container":           {judgeFileSystem(daemon.Mount{Type: "overlay"}, "d"), precondition.Warn, "mount a volume"},
		"CIFS":                {judgeFileSystem(daemon.Mount{Type: "cifs", Device: "//nas/x"}, "d"), precondition.Warn, "a folder on a local disk"},
		"fsync works":         {fsyncOf(t, time.Millisecond, nil), precondition.OK, "works"},
		"fsync is slow":       {fsyncOf(t, time.Second, nil), precondition.Warn, "one fsync takes 1s"},
		"fsync fails":         {fsyncOf(t, 0, &fs.PathError{Op: "sync", Path: "x", Err: syscall.EIO}), precondition.Fail, "cannot be written and synced: input/output error"},
		"quota is used up":    {fsyncOf(t, 0, &fs.PathError{Op: "write", Path: "x", Err: syscall.EDQUOT}), precondition.Fail, "quota"},
		"much room":           {judgeRoom(state.Disk{Free: 10 * gib, Reserve: gib}, 2*gib, 0, "d"), precondition.OK, "9.0 GiB are free"},
		"no room to rebuild":  {judgeRoom(state.Disk{Free: 4 * gib, Reserve: gib}, 2*gib, 0, "d"), precondition.Warn, "a rebuild does not fit"},
		"loaded already":      {judgeRoom(state.Disk{Free: 4 * gib, Reserve: gib}, 2*gib, 2*gib, "d"), precondition.OK, ""},
		"no room at all":      {judgeRoom(state.Disk{Free: 2 * gib, Reserve: gib}, 2*gib, 0, "d"), precondition.Fail, "the first snapshot does not fit"},
		"reserve reached":     {judgeRoom(state.Disk{Free: gib / 2, Reserve: gib}, 0, 0, "d"), precondition.Fail, "make room"},
		"many files":          {judgeOpenFiles(65536, 12, 3, "x"), precondition.OK, "at most 65536; 12 lanes and 3 brokers"},
		"few files":           {judgeOpenFiles(512, 12, 3, "x"), precondition.Warn, "LimitNOFILE=65536"},
		"too few for lanes":   {judgeOpenFiles(1024, 400, 3, "x"), precondition.Fail, "fail for want of descriptors"},
		"no memory limit":     {judgeMemory(0, "", 178e6), precondition.OK, "no limit"},
		"enough memory":       {judgeMemory(gib, "f", 178e6), precondition.OK, "at most 1.0 GiB"},
		"tight memory":        {judgeMemory(200<<20, "f", 178e6), precondition.Warn, "may kill"},
		"too little memory":   {judgeMemory(100<<20, "f", 178e6), precondition.Fail, "MemoryMax=512M"},
		"clock kept right":    {judgeClock(true), precondition.OK, "synchronised"},
		"clock on its own":    {judgeClock(false), precondition.Warn, "timedatectl set-ntp true"},
		"mount of this place": {mountOf(t, t.TempDir()), precondition.OK, "mounted on /"},
	} {
		if len(c.found) != 1 || c.found[0].Level != c.level || !strings.Contains(c.found[0].String(), c.text) {
			t.Errorf("%s: %v, want %s with %q", name, c.found, c.level, c.text)
		}
	}
}

func fsyncOf(t *testing.T, took time.Duration, failed error) []finding {
	t.Helper()
	found, err := judgeFsync(took, failed, "d")
	if err != nil {
		t.Error(err)
	}
	return found
}

func mountOf(t *testing.T, dir string) []finding {
	t.Helper()
	mount, ok := daemon.FindMount(dir)
	if !ok {
		t.Skip("no mountinfo")
	}
	return []finding{{Found: mount.Type + " mounted on " + mount.Point}}
}

// A system call that never returns, as on a file system whose server is gone, delays
// one check for its limit.
func TestCheckThatHangsIsGivenUp(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	defer close(hang)
	checks := givenUpInTime([]check{
		{Name: "machine.hangs", At: precondition.AtDoctor, Read: func(context.Context, *machine) ([]finding, error) {
			<-hang
			return nil, nil
		}},
		{Name: "machine.works", At: precondition.AtDoctor, Read: func(context.Context, *machine) ([]finding, error) { return newFact("fine"), nil }},
	})
	report, err := precondition.RunOver(t.Context(), checks, precondition.Everything, 20*time.Millisecond, func(context.Context) (*machine, error) { return nil, nil }) //nolint:nilnil // not used
	if !errors.Is(err, context.DeadlineExceeded) || len(report) != 2 || report[0].Level != precondition.Unknown || !strings.Contains(report[0].Found, "no answer within 20ms") || report[1].Found != "fine" {
		t.Errorf("%+v, %v", report, err)
	}
}
