// Chaos runs the real daemon against a real Postgres and a real broker and
// breaks the processes, files and connections around it while a workload runs.
// Then it stops the faults, lets the daemon catch up, and compares both sinks
// with an oracle of its own (package oracle), which shares no code with the
// daemon: the history of committed transactions and produced messages decides
// which notifications must, may and must not exist.
//
//	bin/chaos -rounds 5 -seed 1 -broker kfake -daemons 2
//
// Every round has its own database, topics and daemons. Its schedule of faults
// and its workload follow from the seed and the round's number: -first 7
// -rounds 1 runs round 7 again. Another run repeats the faults and the
// workload, not the interleavings of threads and networks.
//
// -soak 30 runs one round of 30 minutes instead, at a moderate load, samples memory,
// goroutines, descriptors, disk, tables and WAL all the while, and fails if one of them
// grows (package slope, slopeLimits). -judge build/soak.jsonl judges the samples of an earlier
// soak again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"dinnerbell/internal/testenv"
)

// options are the flags.
type options struct {
	rounds, first int
	seed          uint64
	broker        string // kfake or kafka
	daemons       int    // 1: the second daemon runs only while the first one is a zombie
	seconds       int    // duration of workload and faults, per round
	faults        int    // per round
	soak          int    // minutes of the one round of a soak; 0: rounds
	samples       string // path of a soak's samples
	judge         string // path of the samples of an earlier soak; runs nothing
	limit, slow   time.Duration
	binary, out   string
	keep          string // folder for failed rounds
	script        string // path of scripts/kafka.sh
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == brokerChild {
		os.Exit(exitCode(serveBroker(os.Args[2], os.Args[3])))
	}
	os.Exit(exitCode(run(os.Args[1:])))
}

// exitCode prints err and returns the program's exit code.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "chaos:", err)
	if errors.Is(err, flag.ErrHelp) {
		return 2
	}
	return 1
}

// brokerChild as the first argument turns this program into a kfake broker:
// chaos broker DIR ADDRESS.
const brokerChild = "broker"

func serveBroker(dir, listen string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return testenv.ServeBroker(ctx, dir, listen)
}

func parseOptions(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("chaos", flag.ContinueOnError)
	f.IntVar(&o.rounds, "rounds", 5, "number of rounds")
	f.IntVar(&o.first, "first", 1, "number of the first round, to run a failed one again")
	f.Uint64Var(&o.seed, "seed", 1, "seed of the workload and the faults")
	f.StringVar(&o.broker, "broker", "kfake", "the broker: kfake or kafka (Java 17)")
	f.IntVar(&o.daemons, "daemons", 2, "number of daemons that share the lanes: 1 or 2")
	f.IntVar(&o.seconds, "seconds", 8, "duration of the faults in each round")
	f.IntVar(&o.faults, "faults", 10, "number of faults in each round")
	f.IntVar(&o.soak, "soak", 0, "one round of this many minutes at a moderate load, at least 2; from 20 on its samples must show no leak")
	f.StringVar(&o.samples, "samples", "build/soak.jsonl", "path of the samples of a soak")
	f.StringVar(&o.judge, "judge", "", "run nothing; judge the slopes of the samples in this file (.gz: compressed)")
	f.DurationVar(&o.limit, "limit", 2*time.Minute, "time to catch up after the faults; a longer recovery is a failure")
	f.DurationVar(&o.slow, "slow", 25*time.Second, "the folder of a round with a longer recovery is kept, too, though the round has not failed")
	f.StringVar(&o.binary, "binary", "bin/dinnerbell", "path of the daemon")
	f.StringVar(&o.out, "out", "build/chaos.json", "path of the summary")
	f.StringVar(&o.keep, "keep", "build/chaos", "folder for failed rounds")
	f.StringVar(&o.script, "kafka", "scripts/kafka.sh", "path of the script that runs Kafka")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	switch {
	case o.broker != "kfake" && o.broker != "kafka":
		return nil, fmt.Errorf("-broker %s: kfake or kafka", o.broker)
	case o.daemons != 1 && o.daemons != 2:
		return nil, fmt.Errorf("-daemons %d: 1 or 2", o.daemons)
	case o.soak < 0 || o.soak == 1:
		return nil, fmt.Errorf("-soak %d: at least 2 minutes", o.soak)
	case o.rounds < 1 || o.seconds < 1 || o.faults < 0:
		return nil, errors.New("-rounds and -seconds are at least 1")
	}
	if o.soak > 0 {
		o.rounds, o.daemons, o.seconds = 1, 2, o.soak*60
		o.limit = max(o.limit, soakPatience)
	}
	var err error
	for _, path := range []*string{&o.binary, &o.out, &o.keep, &o.script, &o.samples} {
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, fmt.Errorf("resolve %s: %w", *path, err)
		}
	}
	return o, nil
}

func run(args []string) (err error) {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	if o.judge != "" {
		return judgeSamples(o.judge, os.Stdout)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	w, err := startServers(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.stopServers()) }()
	total := newSummary(o)
	for n := o.first; n < o.first+o.rounds && ctx.Err() == nil; n++ {
		began := time.Now()
		r := newRound(w, n)
		v, roundErr := r.run(ctx)
		if ctx.Err() != nil {
			break
		}
		total.addRound(r, v, roundErr)
		fmt.Println(total.roundLine(r, v, roundErr, time.Since(began)))
		if r.samples != nil {
			total.Slopes = r.samples.results
			fmt.Print(formatSlopes(total.Slopes, r.stormDuration()))
		}
		if err := r.cleanUp(v.Failed() || roundErr != nil || r.recovery > o.slow); err != nil {
			return err
		}
		if err := total.writeSummary(o.out); err != nil {
			return err
		}
		if roundErr != nil && w.lostServer() != nil {
			return fmt.Errorf("round %d: %w", n, w.lostServer())
		}
	}
	runtime.KeepAlive(w)
	return total.failure()
}
