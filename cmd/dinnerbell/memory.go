package main

import (
	"runtime/debug"

	"dinnerbell/cmd/dinnerbell/internal/config"
)

// The live heap is small and steady, and what is garbage is short-lived: at the
// default of 100% the collector took a quarter of the daemon's CPU in fan-outs.
// It may let the heap grow fivefold, up to a limit that keeps the process under
// 300 MB with the store's caches, which are outside the heap.
const (
	gcPercent = 400
	heapLimit = 192 << 20
)

// tuneGC leaves alone what the operator has set by GOGC and GOMEMLIMIT.
func tuneGC(env config.Env) {
	if env["GOGC"] == "" {
		debug.SetGCPercent(gcPercent)
	}
	if env["GOMEMLIMIT"] == "" {
		debug.SetMemoryLimit(heapLimit)
	}
}
