//go:build failpoints

package failpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// hits counts down to the death of the process.
var (
	wanted string
	left   atomic.Int64
)

// DINNERBELL_FAILPOINT is NAME or NAME:N, to die at the N-th time.
func init() {
	name, count, _ := strings.Cut(os.Getenv("DINNERBELL_FAILPOINT"), ":")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		n = 1
	}
	wanted = name
	left.Store(n)
}

// Hit marks the moment name, in the form "part/event".
func Hit(name string) {
	if name != wanted || left.Add(-1) != 0 {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // it has no way to fail
	select {}                                      // nothing more happens on this goroutine
}
