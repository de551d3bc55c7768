package main

import (
	"cmp"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"dinnerbell/scripts/chaos/oracle"
	"dinnerbell/scripts/chaos/random"
	"dinnerbell/scripts/chaos/slope"
)

// newSoak returns a sampler with the samples of a soak of 30 minutes without a leak: a
// daemon that lives all the time, one that starts again every four minutes, and the
// deployment.
func newSoak() *sampler {
	r := &round{servers: &servers{opts: &options{soak: 30, seconds: 30 * 60}}, daemons: []*daemonProcess{{name: "d0"}, {name: "d1"}}}
	s := newSampler(r)
	rnd := rand.New(rand.NewPCG(1, 2))
	for at := 5 * time.Second; at < r.stormDuration(); at += 5 * time.Second {
		campaigns := int(at.Minutes() * 20)
		noise := func(n float64) float64 { return n * rnd.Float64() }
		daemon := func(name string, started time.Duration) {
			lanes := 1 + int(at/(4*time.Minute))%2
			s.samples = append(s.samples, &sample{At: at, Of: name, Started: started.Seconds(), Campaigns: campaigns, Changes: 8 * int(at.Seconds()), Lanes: lanes, Figures: map[string]float64{
				figRSS: 70e6 + noise(5e6), figOutside: 9e6 + noise(1e6), figLive: 10e6 + noise(2e6), figGoroutines: 30 + 25*float64(lanes) + noise(20), figFiles: 40 + noise(6),
				figState: 37e6 + noise(1e6) + 100*8*at.Seconds(),
			}})
		}
		daemon("d0", time.Second)
		daemon("d1", at.Truncate(4*time.Minute)+time.Second)
		s.samples = append(s.samples, &sample{At: at, Of: deployment, Campaigns: campaigns, Figures: map[string]float64{
			figWAL: 1e6 + noise(4e6), figOutbox: 2 + noise(20), figOutboxSize: 500e3 + noise(1e5), figRows: 0.9 * float64(campaigns), figRowsSize: 700 * float64(campaigns),
		}})
	}
	return s
}

// A leak of any figure fails the soak, under the name of the figure.
func TestSoakFindsALeak(t *testing.T) {
	t.Parallel()
	check := func(s *sampler) string {
		v := oracle.NewVerdict()
		s.checkSlopes(v)
		return strings.Join(v.Problems, "\n")
	}
	if got := check(newSoak()); got != "" {
		t.Errorf("without a leak: %s", got)
	}
	for _, limit := range slopeLimits {
		s := newSoak()
		for _, one := range s.samples {
			if y, ok := one.Figures[limit.Figure]; ok && one.Of != "d1" {
				one.Figures[limit.Figure] = y + 2*limit.Most*one.amountOf(limit.Per)
			}
		}
		if got := check(s); !strings.HasPrefix(got, limit.Figure) || !strings.Contains(got, "grows") || strings.Contains(got, "\n") {
			t.Errorf("a leak of %s: %q", limit.Figure, got)
		}
	}
	s := newSoak()
	for _, one := range s.samples {
		if one.Of == "d0" && one.Figures[figGoroutines] > 0 {
			one.Figures[figGoroutines] += float64(one.Campaigns) // a goroutine per campaign
		}
	}
	if got := check(s); !strings.HasPrefix(got, figGoroutines) {
		t.Errorf("a goroutine per campaign: %q", got)
	}
	s = newSoak()
	for _, one := range s.samples {
		one.Started = max(one.Started, one.At.Truncate(10*time.Minute).Seconds()) // d0 has started three times
	}
	if got := check(s); !strings.Contains(got, "no samples of d0") {
		t.Errorf("no long life: %q", got)
	}
	short := newSoak()
	short.round.servers.opts.seconds = 3 * 60
	if got := check(short); got != "" {
		t.Errorf("three minutes prove nothing: %s", got)
	}
	if got := check(newSampler(s.round)); !strings.Contains(got, "no samples of d0") || !strings.Contains(got, "no samples of deployment") {
		t.Errorf("no samples: %q", got)
	}
}

// The samples of a soak on Apache Kafka, of which docs/performance.md has the figures, show no
// leak. A leak of the size that each run must show, added to them, is found beneath their
// noise; a figure without a size of its own must show four tolerances.
func TestLeakBeneathTheNoiseOfARealSoak(t *testing.T) {
	t.Parallel()
	check := func(leak *slope.Limit, perX float64) string {
		list, err := readSamples("testdata/soak-kafka.jsonl.gz")
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range list {
			if y, ok := one.Figures[leak.Figure]; ok {
				one.Figures[leak.Figure] = y + perX*one.amountOf(leak.Per)
			}
		}
		v := oracle.NewVerdict()
		samplerOf(list).checkSlopes(v)
		return strings.Join(v.Problems, "\n")
	}
	if got := check(&slopeLimits[0], 0); got != "" {
		t.Errorf("without a leak: %s", got)
	}
	for _, limit := range slopeLimits {
		if got := check(&limit, cmp.Or(limit.Shows, 4*limit.Most)); !strings.HasPrefix(got, limit.Figure) || !strings.Contains(got, "grows") {
			t.Errorf("a leak of %s: %q", limit.Figure, got)
		}
	}
}

// Each kind of fault comes, and none restarts the daemon that must live.
func TestSoakSchedule(t *testing.T) {
	t.Parallel()
	for _, broker := range []string{"kfake", "kafka"} {
		seen := map[string]int{}
		for _, f := range drawSoakSchedule(random.NewStream(1, 1, random.FaultStream), &options{broker: broker, daemons: 2}, 30*time.Minute) {
			seen[f.Kind]++
			if (f.Kind == faultKill || f.Kind == faultEnd) && f.Daemon == 0 {
				t.Errorf("%+v ends the first daemon", f)
			}
		}
		if seen[faultKill] != 7 || seen[faultEnd] != 5 || seen[faultPostgres] != 6 || seen[faultShutdown] != 3 || seen[faultKfake]+seen[faultKafka]+seen[faultStop] != 5 || seen[brokerRestart] != 0 {
			t.Errorf("%s: %v", broker, seen)
		}
	}
}

// The table marks a slope that fails the soak; a short soak fails by none.
func TestFormatSlopes(t *testing.T) {
	t.Parallel()
	list := []slope.Result{{Limit: slopeLimits[0], Of: "d0", Slope: 1e9, Problem: "grows"}}
	if text := formatSlopes(list, leastSoak-time.Second); strings.Contains(text, "FAILED") {
		t.Error(text)
	}
	text := formatSlopes(list, leastSoak)
	if !strings.Contains(text, figOutside) || !strings.Contains(text, "FAILED") || strings.Count(text, "\n") != 2 {
		t.Error(text)
	}
}
