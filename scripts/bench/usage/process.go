// Package usage reads how much CPU time, memory and disk something takes.
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
// runs on.
const clockTicks = 100

// procStat is what /proc/PID/stat says about CPU time, in seconds. reaped is that
// of children which have ended.
type procStat struct {
	parent      int
	own, reaped float64
}

func readProcStat(pid int) (procStat, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return procStat{}, fmt.Errorf("read CPU time: %w", err)
	}
	// The second field is a name in brackets that may hold anything; after it
	// come state, ppid, … and, as fields 14 to 17, utime stime cutime cstime.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const first = 3 // number of fields[0]
	if len(fields) < 17-first+1 {
		return procStat{}, fmt.Errorf("read CPU time: /proc/%d/stat has %d fields", pid, len(fields))
	}
	var n [18]float64
	for i := 4; i <= 17; i++ {
		n[i], _ = strconv.ParseFloat(fields[i-first], 64) // all numbers; see proc(5)
	}
	return procStat{parent: int(n[4]), own: (n[14] + n[15]) / clockTicks, reaped: (n[16] + n[17]) / clockTicks}, nil
}

// ProcessSeconds is the CPU time of one process since its start.
func ProcessSeconds(pid int) (float64, error) {
	s, err := readProcStat(pid)
	return s.own, err
}

// TreeSeconds is the CPU time of a process and of all children that it has or
// had. Postgres' backends are children of the postmaster, which reaps them, so
// nothing is lost when one ends.
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

// PeakRSS is the largest resident set of a process so far, in bytes.
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
