package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"dinnerbell/cmd/dinnerbell/internal/capacity"
	"dinnerbell/cmd/dinnerbell/internal/httpserve"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
)

// limits is where the limits of a process are read: those of the running daemon, or
// those that this process has, which a daemon started here would have too.
type limits struct {
	pid     string // of the running daemon; "self": this process
	proc    string // "/proc"
	cgroups string // "/sys/fs/cgroup"
}

func systemLimits(pid string) limits {
	if pid == "" {
		pid = "self"
	}
	return limits{pid: pid, proc: "/proc", cgroups: "/sys/fs/cgroup"}
}

// nameProcess names the process in findings.
func (l limits) nameProcess() string {
	if l.pid == "self" {
		return "a process started from here"
	}
	return "the running daemon"
}

// readFileLimit returns the limit of open files; 0: unknown.
func (l limits) readFileLimit() uint64 {
	f, err := os.Open(filepath.Join(l.proc, l.pid, "limits"))
	if err != nil {
		return httpserve.DescriptorLimit()
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// Max open files            1024                 524288               files
		rest, ok := strings.CutPrefix(lines.Text(), "Max open files")
		if !ok {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) < 2 {
			return 0
		}
		n, err := strconv.ParseUint(fields[1], 10, 64) // Go raises the soft limit to the hard one
		if err != nil {
			return 0
		}
		return n
	}
	return httpserve.DescriptorLimit()
}

// The descriptors of a daemon beside its lanes: those of the tables of the local state
// at the least, of the mirror, of the shared readers and of the process itself.
const (
	leastTableFiles = 74
	otherFiles      = 40
	fewFiles        = 1024 // as the daemon warns of at its start
)

// checkOpenFiles compares the limit of open files with what the lanes take.
func checkOpenFiles(_ context.Context, m *machine) ([]finding, error) {
	limit := m.limits.readFileLimit()
	if limit == 0 {
		return nil, errors.New("the limit is not known")
	}
	return judgeOpenFiles(limit, m.lanes, m.brokers, m.limits.nameProcess()), nil
}

func judgeOpenFiles(limit uint64, lanes, brokers int, whose string) []finding {
	work := lanes*(1+max(1, brokers)) + otherFiles
	least := uint64(work+leastTableFiles) * 8 / 7 // HTTP holds up to an eighth
	wanted := max(fewFiles, uint64(work+1000)*8/7)
	object := "open files of " + whose
	const fix = "LimitNOFILE=65536 in the systemd unit, --ulimit nofile=65536 for a container, or ulimit -n 65536"
	text := fmt.Sprintf("at most %d; %d lanes and %d brokers take up to %d", limit, lanes, brokers, wanted)
	switch {
	case limit < least:
		return newFailure(object, text, "connections and the local state fail for want of descriptors", fix)
	case limit < fewFiles:
		return newWarning(object, text, "a large local state or many lanes run out of them", fix)
	}
	return newFact("%s", text)
}

// checkMemory compares the memory limit of the control group with what the daemon takes
// at its peak.
func checkMemory(_ context.Context, m *machine) ([]finding, error) {
	units, err := capacity.Default()
	if err != nil {
		return nil, err
	}
	limit, where, err := m.limits.readMemoryLimit()
	if err != nil {
		return nil, err
	}
	return judgeMemory(limit, where, int64(units.Subscription.Memory)), nil
}

// comfortable is the memory that the daemon is built to stay below.
const comfortable = 300 << 20

func judgeMemory(limit int64, where string, peak int64) []finding {
	if limit == 0 {
		return newFact("no limit; the daemon takes %s at its peak", terminal.Bytes(peak))
	}
	text := fmt.Sprintf("at most %s (%s); the daemon takes %s at its peak", terminal.Bytes(limit), where, terminal.Bytes(peak))
	const fix = "MemoryMax=512M in the systemd unit, or 512Mi as the container's memory limit"
	switch {
	case limit < peak:
		return newFailure("memory", text, "the kernel kills the daemon", fix)
	case limit < comfortable:
		return newWarning("memory", text, "the kernel may kill the daemon under load", fix)
	}
	return newFact("%s", text)
}

// readMemoryLimit returns the smallest memory limit of the process's control groups and its file;
// 0: there is none.
// https://docs.kernel.org/admin-guide/cgroup-v2.html
func (l limits) readMemoryLimit() (limit int64, where string, err error) {
	text, err := os.ReadFile(filepath.Join(l.proc, l.pid, "cgroup"))
	if err != nil {
		return 0, "", errors.New("this system has no control groups that can be read")
	}
	for line := range strings.Lines(string(text)) {
		// 0::/system.slice/dinnerbell.service    5:memory:/docker/0123 (version 1)
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		root, file := l.cgroups, "memory.max"
		switch {
		case fields[0] == "0" && fields[1] == "":
		case fields[1] == "memory":
			root, file = filepath.Join(l.cgroups, "memory"), "memory.limit_in_bytes"
		default:
			continue
		}
		for group := filepath.Join("/", fields[2]); ; group = filepath.Dir(group) {
			name := filepath.Join(root, group, file)
			if n := readLimit(name); n > 0 && (limit == 0 || n < limit) {
				limit, where = n, name
			}
			if group == "/" {
				break
			}
		}
	}
	return limit, where, nil
}

// readLimit reads a limit in bytes; 0: none. Version 1 has a huge number in its place.
func readLimit(name string) int64 {
	text, err := os.ReadFile(name)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n >= 1<<60 {
		return 0
	}
	return n
}
