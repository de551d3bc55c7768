package main

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	"dinnerbell/scripts/chaos/history"
	"dinnerbell/scripts/chaos/network"
	"dinnerbell/scripts/chaos/random"
)

// The kinds of faults. The kind of a link's fault is the link's name and the
// effect: replication.cut, sink.half_open, kafka.delay and so on.
const (
	faultKill     = "daemon.kill"
	faultPause    = "daemon.pause"  // SIGSTOP, SIGCONT
	faultZombie   = "daemon.zombie" // SIGSTOP, another daemon takes its lanes over, SIGCONT
	faultPostgres = "postgres.kill"
	faultKafka    = "kafka.kill" // drawParameters makes every second one a stop
	faultStop     = "kafka.stop" // SIGTERM: the partitions have no leader for a while before the broker ends
	faultKfake    = "kfake.restart"
	faultWipe     = "state.wipe"    // with SIGKILL
	faultRestore  = "state.restore" // with SIGKILL
	faultCopy     = "state.copy"    // no fault: saves the state for a later restore
	faultDamage   = "state.damage"  // with SIGKILL: changes one byte in one file of the store
	faultCommit   = "commit.lost"
	faultEndTxn   = "endtxn.lost"
	faultEnd      = "daemon.terminate" // SIGTERM, of a soak
	faultShutdown = "postgres.restart" // a fast shutdown, of a soak
	faultLink     = "link"             // in the schedule only; drawParameters replaces it

	// Commands that an operator may run at any time.
	faultRebuild    = "operate.rebuild"
	faultVerify     = "operate.verify"
	faultCheckpoint = "operate.checkpoint"
	faultReplay     = "operate.replay"
	faultResolve    = "operate.resolve" // of a healthy lane: the command must change nothing

	faultSlow      = "commit.slow"      // the server delays each commit of a step
	faultRetention = "campaigns.delete" // retention deletes the messages that were read, and the markers behind them
	faultDDL       = "source.ddl"       // while the daemon takes a snapshot
	faultBarrier   = "barrier.shut"     // cuts both links to the source while messages go on

	cut      = "cut"
	delay    = "delay"
	halfOpen = "half_open"
)

// kills are the faults that send SIGKILL to a process.
var kills = []string{faultKill, faultPostgres, faultKafka, faultWipe, faultRestore, faultDamage}

// drawSchedule draws a round's faults. The schedule follows from the seed
// alone.
func drawSchedule(rnd *rand.Rand, o *options, length time.Duration) []*history.Fault {
	broker, most := faultKfake, 1+o.seconds/8
	brokers := most
	if o.broker == "kafka" { // a restart takes some seconds
		broker, brokers = faultKafka, max(1, o.seconds/12)
	}
	table := []struct {
		kind   string
		weight int
		most   int
	}{
		{faultKill, 20, o.faults}, {faultPause, 6, o.faults}, {faultZombie, 10, 2 * most}, {faultPostgres, 10, 3 * most},
		{broker, 7, brokers}, {faultWipe, 6, o.faults}, {faultRestore, 7, o.faults}, {faultDamage, 5, o.faults},
		{faultRebuild, 5, most}, {faultVerify, 5, most}, {faultCheckpoint, 5, o.faults},
		{faultReplay, 6, most}, {faultResolve, 4, o.faults}, {faultSlow, 8, most}, {faultRetention, 8, o.faults},
		{faultDDL, 6, most}, {faultBarrier, 7, most},
		{faultLink, 30, o.faults}, {faultCommit, 12, o.faults}, {faultEndTxn, 12, o.faults},
	}
	weights := make([]int, len(table))
	for i, t := range table {
		weights[i] = t.weight
	}
	var out []*history.Fault
	for range o.faults {
		i := random.WeightedIndex(rnd, weights)
		if table[i].most--; table[i].most <= 0 {
			weights[i] = 0
		}
		f := &history.Fault{Kind: table[i].kind, At: random.Duration(rnd, 0, length), Daemon: rnd.IntN(o.daemons), Leave: rnd.IntN(2) == 0}
		drawParameters(f, rnd)
		out = append(out, f)
		if f.Kind == faultRestore {
			out = append(out, &history.Fault{Kind: faultCopy, Daemon: f.Daemon, At: random.Duration(rnd, f.At/4, f.At*3/4)})
		}
	}
	slices.SortStableFunc(out, func(a, b *history.Fault) int { return cmp.Compare(a.At, b.At) })
	return out
}

// drawParameters draws the parameters that the fault's kind needs.
func drawParameters(f *history.Fault, rnd *rand.Rand) {
	switch f.Kind {
	case faultKill, faultEnd:
		f.Length = random.Duration(rnd, 0, 2*time.Second)
	case faultPause, faultZombie:
		f.Length = random.Duration(rnd, 50*time.Millisecond, 3*time.Second)
	case faultDamage, faultReplay, faultResolve, faultDDL:
		f.Draw = rnd.Uint64()
	case faultSlow:
		f.Length = random.Duration(rnd, 500*time.Millisecond, 3*time.Second)
		f.Millis = 20 + rnd.IntN(800)
	case faultBarrier:
		f.Length = random.Duration(rnd, 500*time.Millisecond, 3*time.Second)
	case faultKafka:
		f.Kind = []string{faultKafka, faultStop}[rnd.IntN(2)]
	case faultPostgres:
		f.Length = random.Duration(rnd, 0, 200*time.Millisecond)
	case faultLink:
		f.Link = network.Names[rnd.IntN(len(network.Names))]
		f.Length = random.Duration(rnd, 50*time.Millisecond, 2500*time.Millisecond)
		f.Direction = []string{"upstream", "downstream"}[rnd.IntN(2)]
		f.Millis = 5 + rnd.IntN(300)
		f.Kind = f.Link + "." + []string{cut, delay, halfOpen}[rnd.IntN(3)]
	}
}
