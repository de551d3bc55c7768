package slope

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// drawSeries returns 30 minutes of samples, one in 5 seconds, of a process that
// handles 20 campaigns a minute; at returns the figure after n campaigns.
func drawSeries(at func(rnd *rand.Rand, n float64) float64) []Point {
	rnd := rand.New(rand.NewPCG(1, 2))
	var out []Point
	for d := time.Duration(0); d <= 30*time.Minute; d += 5 * time.Second {
		n := d.Minutes() * 20
		out = append(out, Point{At: d, X: n, Y: at(rnd, n)})
	}
	return out
}

// quietGoroutines are the goroutines of a process without a leak: some come for a
// moment with each connection, and rarely many for half a minute.
func quietGoroutines(rnd *rand.Rand, n float64) float64 {
	y := 90 + float64(rnd.IntN(12))
	if int(n)%100 < 10 {
		y += 400
	}
	return y
}

var goroutines = Limit{Figure: "goroutines", Unit: "goroutines", Per: "campaign", Most: 0.05}

func TestCheckFindsLeaks(t *testing.T) {
	t.Parallel()
	sawtooth := func(_ *rand.Rand, n float64) float64 { return 30e6 + float64(int(n*1e6)%20e6) } // a heap between collections
	heap := Limit{Figure: "heap", Unit: "bytes", Per: "campaign", Most: 8192, Quantile: 0.1}
	for name, c := range map[string]struct {
		limit Limit
		at    func(rnd *rand.Rand, n float64) float64
		leak  bool
	}{
		"goroutines":                         {goroutines, quietGoroutines, false},
		"a goroutine per campaign":           {goroutines, func(r *rand.Rand, n float64) float64 { return quietGoroutines(r, n) + n }, true},
		"a goroutine per 10 campaigns":       {goroutines, func(r *rand.Rand, n float64) float64 { return quietGoroutines(r, n) + n/10 }, true},
		"many goroutines from the beginning": {goroutines, func(r *rand.Rand, n float64) float64 { return quietGoroutines(r, n) + 5000 }, false},
		"goroutines of a slow start":         {goroutines, func(r *rand.Rand, n float64) float64 { return quietGoroutines(r, n) + min(n, 250) }, false},
		"heap":                               {heap, sawtooth, false},
		"16 KB of heap per campaign":         {heap, func(r *rand.Rand, n float64) float64 { return sawtooth(r, n) + 16384*n }, true},
		"a figure that falls":                {goroutines, func(_ *rand.Rand, n float64) float64 { return 900 - n }, true}, // it would hide a leak
	} {
		r := c.limit.Check("d0", drawSeries(c.at))
		if failed := r.Problem != ""; failed != c.leak {
			t.Errorf("%s: problem %q, slope %g", name, r.Problem, r.Slope)
		}
	}
}

// A process that owns more lanes for a while has more goroutines: that is no leak, and it
// hides none.
func TestCheckComparesWithinGroups(t *testing.T) {
	t.Parallel()
	for leak, found := range map[float64]bool{0: false, 0.2: true} {
		series := drawSeries(quietGoroutines)
		for i := range series {
			lanes := 1 + min(2, i/120) // more and more lanes
			if i%60 < 20 {
				lanes = 2
			}
			series[i].Group = lanes
			series[i].Y += 30*float64(lanes) + leak*series[i].X
		}
		if r := goroutines.Check("d0", series); (r.Problem != "") != found {
			t.Errorf("leak %g: slope %g, problem %q", leak, r.Slope, r.Problem)
		}
	}
}

// Buffers that come and go hide a small leak from the median, and not from a low quantile.
func TestCheckAtALowQuantile(t *testing.T) {
	t.Parallel()
	buffers := func(leak float64) func(*rand.Rand, float64) float64 {
		return func(r *rand.Rand, n float64) float64 {
			y := 5e6 + 2e5*r.Float64() + leak*n
			if r.IntN(5) < 3 {
				y += 20e6 * r.Float64()
			}
			return y
		}
	}
	limit := Limit{Figure: "heap", Unit: "bytes", Per: "campaign", Most: 2048, Quantile: 0.1}
	for leak, found := range map[float64]bool{0: false, 4096: true} {
		if r := limit.Check("d0", drawSeries(buffers(leak))); (r.Problem != "") != found {
			t.Errorf("leak %g: slope %g, problem %q", leak, r.Slope, r.Problem)
		}
	}
	median := limit
	median.Quantile = 0
	if r := median.Check("d0", drawSeries(buffers(0))); r.Problem == "" {
		t.Errorf("the median shows slope %g: the quantile is not needed", r.Slope)
	}
}

// Noise that looks like a leak fails no run, and noise that could hide a leak does.
func TestCheckAllowsForNoise(t *testing.T) {
	t.Parallel()
	noise := func(of float64) []Point { // in steps that last a part
		return drawSeries(func(_ *rand.Rand, n float64) float64 { return 10e6 + of*float64(int(n/50)%3) })
	}
	limit := Limit{Figure: "heap", Unit: "bytes", Per: "campaign", Most: 8192, Shows: 65536}
	if r := limit.Check("d0", noise(2e6)); r.Problem != "" || r.Error < 4096 {
		t.Errorf("slope %g ± %g: %s", r.Slope, r.Error, r.Problem)
	}
	if r := limit.Check("d0", noise(20e6)); !strings.Contains(r.Problem, "would hide a leak of 6.554e+04") {
		t.Errorf("slope %g ± %g: %q", r.Slope, r.Error, r.Problem)
	}
}

// A series that says nothing is not taken for one without a leak.
func TestCheckNeedsSamples(t *testing.T) {
	t.Parallel()
	full := drawSeries(quietGoroutines)
	gap := append(append([]Point{}, full[:200]...), full[320:]...)
	idle := append([]Point{}, full...)
	for i := range idle {
		idle[i].X = 7
	}
	for name, series := range map[string][]Point{"none": nil, "one": full[:1], "few": full[:12], "a gap": gap, "no work": idle} {
		if r := goroutines.Check("d0", series); r.Problem == "" || strings.Contains(r.Problem, "grows") {
			t.Errorf("%s: problem %q", name, r.Problem)
		}
	}
	if r := goroutines.Check("d0", full); r.Problem != "" || r.Samples != len(full) || r.Largest < 400 || r.First < 90 || r.Last > 102 {
		t.Errorf("result %+v", r)
	}
}
