// Package usage measures CPU time, memory and disk space.
package usage

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// clockTicks is USER_HZ, the unit of times in /proc: 100 on every Linux that Go
// supports.
const clockTicks = 100

// procStat is the CPU time in /proc/PID/stat, in seconds. reaped is the time of
// children that have ended.
type procStat struct {
	parent      int
	own, reaped float64
}

func readProcStat(pid int) (procStat, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return procStat{}, fmt.Errorf("read CPU time: %w", err)
	}
	// The second field is a name in brackets with any characters. After it come
	// state, ppid, … and, as fields 14 to 17, utime stime cutime cstime.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const first = 3 // number of fields[0]
	if len(fields) < 17-first+1 {
		return procStat{}, fmt.Errorf("read CPU time: /proc/%d/stat has %d fields", pid, len(fields))
	}
	var n [18]float64
	for i := 4; i <= 17; i++ {
		n[i], _ = strconv.ParseFloat(fields[i-first], 64) // always numbers, see proc(5)
	}
	return procStat{parent: int(n[4]), own: (n[14] + n[15]) / clockTicks, reaped: (n[16] + n[17]) / clockTicks}, nil
}

// ProcessSeconds returns the CPU time of one process since its start.
func ProcessSeconds(pid int) (float64, error) {
	s, err := readProcStat(pid)
	return s.own, err
}

// TreeSeconds returns the CPU time of a process and of all its children, past
// and present. Postgres' backends are children of the postmaster, which reaps
// them, so the time of a backend that ends stays included.
func TreeSeconds(pid int) (float64, error) {
	s, err := readProcStat(pid)
	if err != nil {
		return 0, err
	}
	sum := s.own + s.reaped
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		c, err := readProcStat(child)
		if errors.Is(err, os.ErrNotExist) || c.parent != pid {
			continue
		}
		sum += c.own + c.reaped
	}
	return sum, nil
}

// PeakRSS returns the largest resident set of a process so far, in bytes.
func PeakRSS(pid int) (float64, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
			return kb * 1024, err
		}
	}
	return 0, fmt.Errorf("read memory: /proc/%d/status has no VmHWM", pid)
}
