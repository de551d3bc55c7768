// Package slope finds leaks in samples of a long run: it fits a line through the
// second half of a series and compares its slope with a tolerance.
package slope

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Point is one sample. X is what the figure may grow with: hours, or how much
// work was done by then.
type Point struct {
	At time.Duration
	X  float64
	Y  float64
	// Group is what the figure depends on in jumps, such as the number of lanes that a
	// daemon owns: only points of one group are compared with each other.
	Group int
}

// Limit is the largest slope that is no leak. A slope counts less twice its standard error,
// so that noise fails no run; Shows bounds what the noise may hide.
type Limit struct {
	Figure string  `json:"figure"`
	Unit   string  `json:"unit"` // of Y
	Per    string  `json:"per"`  // the unit of X
	Most   float64 `json:"most"` // Y per X
	// Shows is a leak that every run must be able to show, in Y per X; 0: four times Most.
	// A run that would hide such a leak fails.
	Shows float64 `json:"shows,omitempty"`
	// Quantile is the sample of each part that counts, between 0 and 1; 0 is the median. A low
	// one suits a figure to which only noise is added, such as memory with buffers that come
	// and go: a leak raises the least values too, and they differ less from part to part.
	Quantile float64 `json:"quantile,omitempty"`
}

// Result is the slope of one series.
type Result struct {
	Limit
	Of      string  `json:"of"` // the process, or the deployment
	Slope   float64 `json:"slope"`
	Error   float64 `json:"error"` // the standard error of Slope
	First   float64 `json:"first"` // the sample that counts, of the first part of the second half
	Last    float64 `json:"last"`  // and of its last part
	Largest float64 `json:"largest"`
	Samples int     `json:"samples"`
	Problem string  `json:"problem,omitempty"` // why the check failed
}

// partCount is how many parts the second half is divided into. Each part counts by one of
// its samples, the median for most figures: a cut connection lowers a figure for a moment,
// a takeover and a garbage collection that is due raise it, and a leak moves the median.
// With six parts of a run of 30 minutes each part is longer than the two minutes after
// which Go collects garbage in any case.
const partCount = 6

const (
	// leastSamples is the least number of samples of a part and a group, so that one
	// that falls into a disturbance does not decide.
	leastSamples = 3
	// leastParts is how many parts at least must have samples of one group.
	leastParts = 4
)

// Check fits a line through the second half of the series. A series that is too
// short to judge fails the check: without figures there is no answer.
func (l Limit) Check(of string, series []Point) Result {
	r := Result{Limit: l, Of: of}
	parts, err := l.reduceParts(series)
	if err != nil {
		r.Problem = fmt.Sprintf("%s of %s: %v", l.Figure, of, err)
		return r
	}
	r.First, r.Last, r.Samples = parts[0].Y, parts[len(parts)-1].Y, len(series)
	for _, p := range series {
		r.Largest = max(r.Largest, p.Y)
	}
	if r.Slope, r.Error, err = fitLine(parts); err != nil {
		r.Problem = fmt.Sprintf("%s of %s: %v", l.Figure, of, err)
		return r
	}
	shown := r.Slope - 2*r.Error
	shows := cmp.Or(l.Shows, leakFactor*l.Most)
	switch {
	case shown > l.Most:
		r.Problem = fmt.Sprintf("%s of %s grows by %.4g ± %.2g %s per %s, more than %.4g", l.Figure, of, r.Slope, 2*r.Error, l.Unit, l.Per, l.Most)
	case shown+shows <= l.Most: // it falls by itself, or there is too much noise
		r.Problem = fmt.Sprintf("%s of %s, with a slope of %.4g ± %.2g, would hide a leak of %.4g %s per %s", l.Figure, of, r.Slope, 2*r.Error, shows, l.Unit, l.Per)
	}
	return r
}

// leakFactor is the size of the leak that a series must show, in tolerances.
const leakFactor = 4

// reduceParts returns a point for each part of the second half and each group, in the order
// of the parts.
func (l Limit) reduceParts(series []Point) ([]Point, error) {
	if len(series) == 0 {
		return nil, errors.New("no samples")
	}
	from, to := series[0].At, series[len(series)-1].At
	from += (to - from) / 2
	width := (to - from) / partCount
	if width <= 0 {
		return nil, fmt.Errorf("%d samples cover no time", len(series))
	}
	type cell struct{ part, group int }
	cells := map[cell][]Point{}
	for _, p := range series {
		if p.At < from {
			continue
		}
		c := cell{min(int((p.At-from)/width), partCount-1), p.Group}
		cells[c] = append(cells[c], p)
	}
	parts, most := map[int]int{}, 0
	var out []Point
	for c, points := range cells {
		if len(points) < leastSamples {
			continue
		}
		middle := points[len(points)/2] // in time
		slices.SortFunc(points, func(a, b Point) int { return cmp.Compare(a.Y, b.Y) })
		middle.Y = points[int(cmp.Or(l.Quantile, 0.5)*float64(len(points)))].Y
		out = append(out, middle)
		parts[c.group]++
		most = max(most, parts[c.group])
	}
	if most < leastParts {
		return nil, fmt.Errorf("%d of %d parts of the second half have %d comparable samples, at least %d parts are needed", most, partCount, leastSamples, leastParts)
	}
	slices.SortFunc(out, func(a, b Point) int { return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Group, b.Group)) })
	return out, nil
}

// fitLine returns the slope of the least-squares lines of the groups, which have one slope
// and differ in height, and the standard error of the slope.
func fitLine(points []Point) (slope, stdErr float64, err error) {
	type mean struct{ x, y, n float64 }
	means := map[int]mean{}
	for _, p := range points {
		m := means[p.Group]
		means[p.Group] = mean{m.x + p.X, m.y + p.Y, m.n + 1}
	}
	var xx, xy, yy float64
	for _, p := range points {
		m := means[p.Group]
		dx, dy := p.X-m.x/m.n, p.Y-m.y/m.n
		xx, xy, yy = xx+dx*dx, xy+dx*dy, yy+dy*dy
	}
	slope = xy / xx
	if xx == 0 || math.IsNaN(slope) {
		return 0, 0, errors.New("nothing was done in the second half: there is nothing to compare with")
	}
	free := float64(len(points) - len(means) - 1) // degrees of freedom; at least two, by leastParts
	return slope, math.Sqrt(max(0, yy-slope*xy) / free / xx), nil
}
