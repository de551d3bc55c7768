package main

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	"dinnerbell/scripts/chaos/history"
	"dinnerbell/scripts/chaos/random"
)

// pace is how fast the workload goes.
type pace struct {
	message, transaction [2]time.Duration // shortest and longest pause before the next one, of each writer
	checkpoint           time.Duration    // state.checkpoint.every
}

var (
	roundPace = pace{
		message: [2]time.Duration{10 * time.Millisecond, 250 * time.Millisecond}, transaction: [2]time.Duration{2 * time.Millisecond, 60 * time.Millisecond},
		checkpoint: 2 * time.Second,
	}
	// soakPace leaves most of the machine to other work.
	soakPace = pace{
		message: [2]time.Duration{time.Second, 4 * time.Second}, transaction: [2]time.Duration{500 * time.Millisecond, 4 * time.Second},
		checkpoint: 20 * time.Second,
	}
)

func (p pace) drawMessagePause(rnd *rand.Rand) time.Duration {
	return random.Duration(rnd, p.message[0], p.message[1])
}

func (p pace) drawTransactionPause(rnd *rand.Rand) time.Duration {
	return random.Duration(rnd, p.transaction[0], p.transaction[1])
}

// soakPatience is how long a soak waits for a broker that restarts and for the end of its
// own work: a soak runs beside other work, under which a restart of Kafka took two minutes
// and a half.
const soakPatience = 10 * time.Minute

// soakCollector is the daemon's GOGC, with which it collects garbage often. At its own
// setting the heap grows to a multiple of what is live before a collection, so that the
// figures would be old ones.
const soakCollector = 50

// soakFaults are the faults of a soak and how often each comes. The second daemon is
// the one that restarts; the first one lives from the beginning to the end, so that its
// samples show what grows in a process that sees everything around it break. No fault
// changes the local state by itself: its size is a figure.
var soakFaults = []struct {
	kind   string
	every  time.Duration
	daemon int // -1: either
}{
	{faultKill, 4 * time.Minute, 1}, {faultEnd, 6 * time.Minute, 1}, {faultPause, 7 * time.Minute, -1}, {faultZombie, 10 * time.Minute, -1},
	{faultPostgres, 5 * time.Minute, 0}, {faultShutdown, 8 * time.Minute, 0}, {brokerRestart, 6 * time.Minute, 0},
	{faultLink, 40 * time.Second, -1}, {faultCommit, 4 * time.Minute, -1}, {faultEndTxn, 4 * time.Minute, -1},
	{faultSlow, 6 * time.Minute, 0}, {faultVerify, 6 * time.Minute, -1}, {faultCheckpoint, 5 * time.Minute, -1},
}

// brokerRestart stands for the fault of the broker in use.
const brokerRestart = "broker"

// drawSoakSchedule draws a soak's faults. Each kind comes at its rate, at least once.
func drawSoakSchedule(rnd *rand.Rand, o *options, length time.Duration) []*history.Fault {
	var out []*history.Fault
	for _, s := range soakFaults {
		n := max(1, int(length/s.every))
		part := length / time.Duration(n)
		for i := range n {
			f := &history.Fault{Kind: s.kind, At: time.Duration(i)*part + random.Duration(rnd, 0, part), Daemon: s.daemon, Leave: rnd.IntN(2) == 0}
			if f.Daemon < 0 {
				f.Daemon = rnd.IntN(o.daemons)
			}
			if f.Kind == brokerRestart {
				f.Kind = map[string]string{"kafka": faultKafka, "kfake": faultKfake}[o.broker]
			}
			drawParameters(f, rnd)
			out = append(out, f)
		}
	}
	slices.SortStableFunc(out, func(a, b *history.Fault) int { return cmp.Compare(a.At, b.At) })
	return out
}
