package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/testenv"
	"dinnerbell/scripts/chaos/oracle"
	"dinnerbell/scripts/chaos/slope"
)

// The figures of a sample.
const (
	figRSS        = "resident memory"        // with the pages of the program's file; no limit
	figAnonymous  = "anonymous memory"       // resident, without pages of files; no limit
	figOutside    = "memory beside the heap" // anonymous memory without the Go heap
	figLive       = "live Go heap"           // after the last garbage collection
	figHeap       = "Go heap"                // with garbage; no limit
	figHeapPages  = "pages of the Go heap"   // obtained from the system and not returned; no limit
	figGoroutines = "goroutines"
	figFiles      = "file descriptors"
	figCPU        = "CPU" // of the process since its start; no limit
	figState      = "state directory"
	figWAL        = "WAL held by the slot"
	figOutbox     = "outbox rows"
	figOutboxSize = "outbox table"
	figRows       = "campaign rows"
	figRowsSize   = "campaign table"
)

// What a figure is compared with.
const (
	perHour     = "hour"
	perCampaign = "campaign"
	perChange   = "changed row"
)

const (
	kilobyte = 1 << 10
	megabyte = 1 << 20
)

// slopeLimits are the tolerances, with the reasons.
var slopeLimits = []slope.Limit{
	// Memory beside the heap: stacks, the collector's tables, and the store's cache (64 MB at
	// most) and memtables. A TRUNCATE of the subscriptions fills a memtable of 16 MB, which
	// stays: in the second half of 30 minutes that looks like 48 MB an hour.
	{Figure: figOutside, Unit: "bytes", Per: perHour, Most: 48 * megabyte},
	// A lane remembers its last messages. Beside these, the live heap swings by 10 MB: a
	// lane's session keeps the buffers of its largest steps, and gives them up when it ends.
	// The least values of each part have few buffers, and differ by 1 to 2 MB.
	{Figure: figLive, Unit: "bytes", Per: perCampaign, Most: 8 * kilobyte, Shows: 48 * kilobyte, Quantile: 0.1},
	// One left behind by every twentieth campaign: some 10 in the second half of 30
	// minutes, where the medians differ by two or three.
	{Figure: figGoroutines, Unit: "goroutines", Per: perCampaign, Most: 0.05},
	{Figure: figFiles, Unit: "descriptors", Per: perCampaign, Most: 0.05},
	// The history of subscription changes takes some 100 bytes for a change with the
	// long ids of this workload, its log in the store and the hard links of checkpoints
	// as much again; the store compresses it later.
	{Figure: figState, Unit: "bytes", Per: perChange, Most: kilobyte},
	// A restart of the slot's owner or of the source is made good within seconds, on a busy
	// machine within minutes: the least values are those between restarts.
	{Figure: figWAL, Unit: "bytes", Per: perHour, Most: 16 * megabyte, Quantile: 0.1},
	// The next step of a lane deletes what was shipped, so a lane leaves a few rows; more wait
	// while the broker restarts.
	{Figure: figOutbox, Unit: "rows", Per: perCampaign, Most: 0.05, Quantile: 0.1},
	// Vacuum makes the room of deleted rows free, and the next rows take it.
	{Figure: figOutboxSize, Unit: "bytes", Per: perHour, Most: 16 * megabyte},
	// A campaign of one restaurant has one row, which stays for 7 days after its end;
	// its edits, repeats and cancels have none of their own.
	{Figure: figRows, Unit: "rows", Per: perCampaign, Most: 1.05},
	// One row and its entries in the indexes, and the old versions that vacuum has not
	// reached yet.
	{Figure: figRowsSize, Unit: "bytes", Per: perCampaign, Most: 4 * kilobyte},
}

// sample is one moment of one life of a daemon, or of the deployment.
type sample struct {
	At        time.Duration      `json:"at"`
	Of        string             `json:"of"`        // d0, d1 or deployment
	Started   float64            `json:"started"`   // Unix time of the process's start; 0: the deployment
	Campaigns int                `json:"campaigns"` // sent so far
	Changes   int                `json:"changes"`   // rows changed so far
	Lanes     int                `json:"lanes"`     // owned by the process
	Figures   map[string]float64 `json:"figures"`
}

// amountOf returns what a figure of the sample is compared with.
func (s *sample) amountOf(per string) float64 {
	switch per {
	case perCampaign:
		return float64(s.Campaigns)
	case perChange:
		return float64(s.Changes)
	}
	return s.At.Hours()
}

// sampler takes the samples of a soak.
type sampler struct {
	round   *round
	conn    *pgx.Conn // nil while Postgres does not answer
	samples []*sample
	results []slope.Result
}

func newSampler(r *round) *sampler { return &sampler{round: r} }

const deployment = "deployment"

// sampleUntilDone takes 1,200 samples until ctx ends, at most one in a second. A daemon or
// a database that does not answer at the moment, since a fault is at work, has no sample.
func (s *sampler) sampleUntilDone(ctx context.Context) (err error) {
	if err := os.MkdirAll(filepath.Dir(s.round.servers.opts.samples), 0o750); err != nil {
		return fmt.Errorf("write samples: %w", err)
	}
	f, err := os.Create(s.round.servers.opts.samples)
	if err != nil {
		return fmt.Errorf("write samples: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	defer s.closeConn()
	enc := json.NewEncoder(f)
	for testenv.Pause(ctx, max(time.Second, s.round.stormDuration()/1200)) {
		taken := s.samples
		for _, d := range s.round.daemons {
			s.addSample(s.sampleDaemon(ctx, d))
		}
		s.addSample(s.sampleDatabase(ctx))
		for _, one := range s.samples[len(taken):] {
			if err := enc.Encode(one); err != nil {
				return fmt.Errorf("write samples: %w", err)
			}
		}
	}
	return nil
}

// addSample adds a sample that was taken; err means that there is none.
func (s *sampler) addSample(one *sample, err error) {
	if err != nil {
		return
	}
	one.At = s.round.log.Now()
	one.Campaigns, one.Changes = s.round.log.CountWork()
	s.samples = append(s.samples, one)
}

// daemonMetrics are the metrics of a daemon that a sample needs, and their figures. Figures
// without a limit are there for whoever looks for the reason of a slope.
var daemonMetrics = map[string]string{
	"process_resident_memory_bytes": figRSS, "go_memstats_heap_alloc_bytes": figHeap, "go_gc_heap_live_bytes": figLive,
	"go_memstats_heap_sys_bytes": figHeapPages, "go_goroutines": figGoroutines, "process_open_fds": figFiles, "process_cpu_seconds_total": figCPU,
}

// sampleDaemon reads /metrics, the size of state.dir and the process's anonymous memory.
func (s *sampler) sampleDaemon(ctx context.Context, d *daemonProcess) (*sample, error) {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	text, err := testenv.Get(ctx, "http://"+d.http+"/metrics")
	if err != nil {
		return nil, err
	}
	one := &sample{Of: d.name, Figures: map[string]float64{}}
	var released float64
	for line := range bytes.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		n, err := strconv.ParseFloat(value, 64)
		switch {
		case err != nil:
		case strings.HasPrefix(name, "dinnerbell_lane_epoch{"):
			one.Lanes++
		case name == "process_start_time_seconds":
			one.Started = n
		case name == "go_memstats_heap_released_bytes":
			released = n
		case daemonMetrics[name] != "":
			one.Figures[daemonMetrics[name]] = n
		}
	}
	if len(one.Figures) != len(daemonMetrics) || one.Started == 0 {
		return nil, fmt.Errorf("read metrics of %s: only %v", d.name, one.Figures)
	}
	one.Figures[figHeapPages] -= released
	if one.Figures[figAnonymous], err = d.anonymousMemory(); err != nil {
		return nil, err
	}
	one.Figures[figOutside] = one.Figures[figAnonymous] - one.Figures[figHeapPages]
	one.Figures[figState], err = measureFolder(d.dir)
	return one, err
}

// measureFolder returns the size of a folder on disk. A file that several checkpoints
// link counts once; one that is deleted meanwhile does not count.
func measureFolder(dir string) (float64, error) {
	sum, seen := float64(0), map[uint64]bool{}
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return ignoreMissing(err)
		}
		info, err := e.Info()
		if err != nil {
			return ignoreMissing(err)
		}
		const block = 512 // the unit of st_blocks on every file system
		if sys, ok := info.Sys().(*syscall.Stat_t); ok && !seen[sys.Ino] {
			seen[sys.Ino] = true
			sum += float64(sys.Blocks) * block
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return sum, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sampleDatabase reads the figures of the daemon's tables, and the WAL that the slots hold.
func (s *sampler) sampleDatabase(ctx context.Context) (_ *sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if s.conn == nil {
		if s.conn, err = s.round.servers.connectPostgres(ctx, s.round.database); err != nil {
			return nil, err
		}
	}
	var outbox, outboxSize, rows, rowsSize, wal float64
	err = s.conn.QueryRow(ctx, `SELECT (SELECT count(*) FROM dinnerbell.outbox), pg_total_relation_size('dinnerbell.outbox'),
  (SELECT count(*) FROM dinnerbell.campaign), pg_total_relation_size('dinnerbell.campaign'),
  (SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)::float8 FROM pg_replication_slots WHERE NOT temporary AND database = current_database())`).Scan(
		&outbox, &outboxSize, &rows, &rowsSize, &wal)
	if err != nil {
		s.closeConn()
		return nil, fmt.Errorf("sample database: %w", err)
	}
	return &sample{Of: deployment, Figures: map[string]float64{figOutbox: outbox, figOutboxSize: outboxSize, figRows: rows, figRowsSize: rowsSize, figWAL: wal}}, nil
}

func (s *sampler) closeConn() {
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.conn.Close(ctx) // the connection may be broken
	s.conn = nil
}

// life is one process of a daemon, or the deployment.
type life struct {
	of      string
	started float64
}

// leastSoak is the least length of a soak whose slopes can fail it. In a shorter one the
// caches still fill and a part of the second half sees one fault: its slopes are printed.
const leastSoak = 20 * time.Minute

// checkSlopes checks each figure of the deployment and of every process that lived for
// at least half of the soak. The first daemon must be one of them. Problems go to v
// unless the soak is shorter than leastSoak.
func (s *sampler) checkSlopes(v *oracle.Verdict) {
	if s.round.stormDuration() < leastSoak {
		v = oracle.NewVerdict() // nobody reads it
	}
	var order []life
	lives := map[life][]*sample{}
	for _, one := range s.samples {
		l := life{one.Of, math.Round(one.Started)}
		if lives[l] == nil {
			order = append(order, l)
		}
		lives[l] = append(lives[l], one)
	}
	checked := map[string]int{}
	for _, l := range order {
		list := lives[l]
		if length := list[len(list)-1].At - list[0].At; length < s.round.stormDuration()/2 {
			continue // too short to judge
		}
		for _, r := range checkLife(l.of, list) {
			checked[l.of]++
			s.results = append(s.results, r)
			if r.Problem != "" {
				v.Problemf("%s", r.Problem)
			}
		}
	}
	for _, of := range []string{s.round.daemons[0].name, deployment} {
		if checked[of] == 0 {
			v.Problemf("no samples of %s over half of the soak: %d processes were seen", of, len(order))
		}
	}
}

// checkLife checks the figures that the samples have.
func checkLife(of string, list []*sample) []slope.Result {
	var out []slope.Result
	for _, limit := range slopeLimits {
		var series []slope.Point
		for _, one := range list {
			if y, ok := one.Figures[limit.Figure]; ok {
				series = append(series, slope.Point{At: one.At, X: one.amountOf(limit.Per), Y: y, Group: one.Lanes})
			}
		}
		if series != nil {
			out = append(out, limit.Check(of, series))
		}
	}
	return out
}

// formatSlopes renders the table of a soak of that length.
func formatSlopes(list []slope.Result, length time.Duration) string {
	var b strings.Builder
	if length < leastSoak {
		fmt.Fprintf(&b, "slopes of a soak of less than %s, which prove nothing and fail nothing:\n", leastSoak)
	}
	fmt.Fprintf(&b, "%-11s %-22s %12s %12s %12s  %s\n", "of", "figure", "at half time", "at the end", "largest", "slope over the second half (tolerance)")
	for _, r := range list {
		fmt.Fprintf(&b, "%-11s %-22s %12.0f %12.0f %12.0f  %.4g ± %.2g %s per %s (%.4g)", r.Of, r.Figure, r.First, r.Last, r.Largest, r.Slope, 2*r.Error, r.Unit, r.Per, r.Most)
		if r.Problem != "" && length >= leastSoak {
			b.WriteString("  FAILED")
		}
		b.WriteByte('\n')
	}
	return b.String()
}
