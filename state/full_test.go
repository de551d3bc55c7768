package state

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"dinnerbell/state/id"
)

// TestFullDiskAtEveryWrite makes the disk full from each write of a run on, for one
// write, for three, or for good. Where Pebble cannot go on the process would end, so a
// child makes the runs and leaves such stores open. The store that is found afterwards
// stands at a position that it had, not before the durable position, and nothing is set
// aside.
func TestFullDiskAtEveryWrite(t *testing.T) {
	t.Parallel()
	child := exec.Command(os.Args[0], "-test.run=^TestFullDiskChild$", "-test.v")
	child.Env = append(os.Environ(), "STATE_TEST_FULL=1")
	out, err := child.CombinedOutput()
	if child.ProcessState == nil || child.ProcessState.ExitCode() != childGood {
		t.Fatalf("%v\n%s", err, out[max(0, len(out)-8<<10):])
	}
	t.Logf("%s", out[max(0, len(out)-500):])
}

// childGood is the exit code of a child whose test passed; a test may not exit with 0.
const childGood = 7

// fullDisk refuses many writes from write number first on.
type fullDisk struct {
	first, many int64
	n           atomic.Int64
}

func (f *fullDisk) refuse(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
		return nil
	}
	switch op.Kind {
	case errorfs.OpLock, errorfs.OpFileClose, errorfs.OpRemove, errorfs.OpRemoveAll: // need no room
		return nil
	default:
	}
	if n := f.n.Add(1) - 1; n >= f.first && n < f.first+f.many {
		return &os.PathError{Op: "write", Path: op.Path, Err: syscall.ENOSPC}
	}
	return nil
}

// TestFullDiskChild does the work of TestFullDiskAtEveryWrite.
func TestFullDiskChild(t *testing.T) {
	if os.Getenv("STATE_TEST_FULL") == "" {
		t.Skip("runs as a child")
	}
	w := newWorld(t, 5)
	h := makeHistory(w, 25)
	all := &fullDisk{first: 1 << 40}
	runFull(t, vfs.NewCrashableMem(), all, h)
	ends, r := map[string]int{}, rand.New(rand.NewPCG(2, 2))
	for k := range all.n.Load() {
		mem := vfs.NewCrashableMem()
		full := &fullDisk{first: k, many: []int64{1, 3, 1 << 40}[k%3]}
		how, durable := runFull(t, mem, full, h)
		ends[how]++
		// The process ended, not the machine: all written data is there.
		c := crashImage{write: int(k), durable: durable, disk: mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: r})}
		full.n.Store(1 << 50) // there is room again: a store that is still open does not try again
		checkCrash(t, c, h, w)
	}
	fmt.Println(all.n.Load(), "writes; how the runs ended:", ends)
	if t.Failed() {
		os.Exit(1) // goroutines of stores that ended are left
	}
	os.Exit(childGood)
}

// runFull applies the history until something fails. It returns in words how the run
// ended, and the position that was durable by then.
func runFull(t *testing.T, mem *vfs.MemFS, full *fullDisk, h *batchHistory) (how string, durable id.LSN) {
	t.Helper()
	ended := make(chan string, 1)
	var synced atomic.Uint64
	o := crashOptions(errorfs.Wrap(mem, errorfs.InjectorFunc(full.refuse)))
	o.Fatal = func(string) {
		select {
		case ended <- "process ended":
		default:
		}
		select {}
	}
	go func() {
		s, err := Open("state", o)
		for i := 0; err == nil && i < len(h.batches); i++ {
			if err = s.Apply(&h.batches[i]); err == nil && i%4 == 3 {
				var at id.LSN
				if at, err = s.Sync(); err == nil {
					synced.Store(uint64(at))
				}
			}
			if err == nil && i%16 == 15 {
				_, err = s.db.AsyncFlush() // Pebble tries again until there is room
			}
		}
		how := "done"
		if err != nil {
			how = "error"
		}
		if s != nil {
			_ = s.Close()
		}
		ended <- how
	}()
	how = <-ended
	return how, id.LSN(synced.Load())
}
