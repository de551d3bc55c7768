package daemon

import (
	"runtime/debug"
	"sync"

	"dinnerbell/cmd/dinnerbell/internal/config"
)

// The live heap is small and steady, and garbage is short-lived: at the default of
// 100% the collector took a quarter of the daemon's CPU in fan-outs. It may let the
// heap grow fivefold, up to a limit that keeps the process under 300 MB with the
// store's caches, which are outside the heap.
const (
	gcPercent = 400
	heapLimit = 192 << 20
)

// TuneGC sets the collector's percentage and memory limit, unless the operator has
// set GOGC or GOMEMLIMIT.
func TuneGC(env config.Env) {
	if env["GOGC"] == "" {
		debug.SetGCPercent(gcPercent)
	}
	if env["GOMEMLIMIT"] == "" {
		debug.SetMemoryLimit(heapLimit)
	}
}

// loadPercent is the collector's percentage while rows are loaded: then much of the
// heap is alive, and the store's caches are full.
const loadPercent = 100

// loadGC lowers the collector's percentage while rows are loaded.
type loadGC struct {
	mu     sync.Mutex // guards below
	asking int
	before int // the percentage to go back to
}

// Begin reports the begin of a load; call done at its end.
func (l *loadGC) Begin() (done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asking++; l.asking == 1 {
		l.before = debug.SetGCPercent(loadPercent)
		if l.before >= 0 && l.before < loadPercent {
			debug.SetGCPercent(l.before)
		}
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.asking--; l.asking == 0 {
			debug.SetGCPercent(l.before)
		}
	}
}
