// Command bench measures dinnerbell beside the limits of the machine and beside
// a consumer written by hand, on the same servers in the same run, and writes
// the results to build/bench.json.
//
// Every contender is alone while it is measured: the processes of the others
// are stopped. Contenders take turns, so that a machine that slows down slows
// all of them. Postgres has fsync and synchronous_commit on. All servers are
// children on loopback, in one temporary folder that is removed at the end.
//
// There is no verdict: the exit code shows only whether every part ran and
// every delivery was correct.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"dinnerbell/internal/testenv"
	"dinnerbell/scripts/bench/deployment"
	"dinnerbell/scripts/bench/report"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 3 && args[0] == deployment.BrokerCommand {
		if err := testenv.ServeBroker(ctx, args[1], args[2]); err != nil {
			_, _ = fmt.Fprintln(stderr, "bench:", err)
			return 1
		}
		return 0
	}
	opts, err := parseOptions(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		_, _ = fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	s := &suite{opts: opts, stderr: stderr, began: time.Now(), report: &report.Report{}}
	err = s.run(ctx)
	// The results before an error are written, too.
	if writeErr := s.report.Write(opts.json, opts.gobench, stdout); writeErr != nil {
		err = errors.Join(err, writeErr)
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// options are the flags. The sizes below are for a full run; -quick has smaller
// ones.
type options struct {
	quick bool
	only  []string // names of parts; empty: all
	// brokers are the brokers of the fan-out: kfake, kafka.
	brokers []string

	subscriptions int // rows of the source table
	audience      int // subscribers of the large campaign
	runs          int // per contender
	samples       int // campaigns per latency series
	transactions  int // single-row transactions for cdc_drain

	binary  string // path of dinnerbell
	byhand  string // path of the consumer written by hand
	json    string // path for the results
	gobench string // path for the single values, for benchstat
	perf    string // folder for perf's records of the daemon; empty: none
	keep    bool
}

// parts in the order in which they run. Rebuild comes first, since it needs a
// daemon without state.
var parts = []string{"rebuild", "fanout", "small", "lanes", "latency", "scheduled", "fairness", "late", "kill", "memory", "cdc", "drain", "history", "flatness", "units"}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	o := options{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.BoolVar(&o.quick, "quick", false, "small sizes, under three minutes")
	only := f.String("only", "", "comma-separated parts: "+strings.Join(parts, ",")+" (quick: without "+strings.Join(notQuick, ",")+")")
	brokers := f.String("brokers", "kfake,kafka", "comma-separated: kfake, kafka")
	f.IntVar(&o.subscriptions, "subscriptions", 0, "rows of the source table (10,000,000; quick: 400,000)")
	f.IntVar(&o.audience, "audience", 0, "subscribers of the large campaign (300,000; quick: 100,000)")
	f.IntVar(&o.runs, "runs", 0, "runs of each contender (5; quick: 3)")
	f.IntVar(&o.samples, "samples", 0, "campaigns per latency series (1000; quick: 80)")
	f.IntVar(&o.transactions, "transactions", 0, "single-row transactions of cdc_drain (1,000,000; quick: 50,000)")
	f.StringVar(&o.binary, "binary", "bin/dinnerbell", "path of the daemon")
	f.StringVar(&o.byhand, "byhand", "bin/byhand", "path of the hand-written consumer")
	f.StringVar(&o.json, "json", "build/bench.json", "path for the results")
	f.StringVar(&o.gobench, "gobench", "build/bench.txt", "path for the single values, in the format of Go benchmarks")
	f.StringVar(&o.perf, "perf", "", "folder for `perf record` of the daemon during each delivery; perturbs what is measured")
	f.BoolVar(&o.keep, "keep", false, "keep the servers' folder")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	o.fillDefaults()
	o.brokers = strings.Split(*brokers, ",")
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	return o, o.validate()
}

// fillDefaults sets the sizes that depend on -quick.
func (o *options) fillDefaults() {
	for _, d := range []struct {
		value       *int
		full, quick int
	}{
		{&o.subscriptions, 10_000_000, 400_000}, {&o.audience, 300_000, 100_000}, {&o.runs, 5, 3}, {&o.samples, 1000, 80}, {&o.transactions, 1_000_000, 50_000},
	} {
		switch {
		case *d.value != 0:
		case o.quick:
			*d.value = d.quick
		default:
			*d.value = d.full
		}
	}
}

// validate rejects unusable options and makes paths absolute.
func (o *options) validate() error {
	for _, p := range o.only {
		if !slices.Contains(parts, p) {
			return fmt.Errorf("no part %q; the parts are %s", p, strings.Join(parts, ", "))
		}
	}
	for _, b := range o.brokers {
		if b != "kfake" && b != deployment.KindKafka {
			return fmt.Errorf("no broker %q; the brokers are kfake, kafka", b)
		}
	}
	if fixed := deployment.NewPopulation(o.audience, 0); o.subscriptions < fixed.Rows() {
		return fmt.Errorf("-subscriptions %d are too few for -audience %d: at least %d", o.subscriptions, o.audience, fixed.Rows())
	}
	if o.perf != "" {
		if err := os.MkdirAll(o.perf, 0o750); err != nil {
			return fmt.Errorf("make folder for perf: %w", err)
		}
	}
	for _, path := range []*string{&o.binary, &o.byhand} {
		abs, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		if _, err := os.Stat(abs); err != nil {
			return fmt.Errorf("find program to measure: %w", err)
		}
		*path = abs
	}
	return nil
}

// notQuick are parts that a quick run includes only if asked to.
var notQuick = []string{"lanes", "fairness", "kill", "flatness", "units"}

func (o *options) wantsPart(part string) bool {
	if len(o.only) == 0 {
		return !o.quick || !slices.Contains(notQuick, part)
	}
	return slices.Contains(o.only, part)
}
