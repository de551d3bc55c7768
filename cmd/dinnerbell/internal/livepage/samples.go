package livepage

import (
	"sync"
	"time"

	"dinnerbell/stream"
)

const (
	sampleEvery = time.Second
	window      = 15 * time.Minute
	ringLength  = int(window / sampleEvery)
	// rateWindow is the time that the present rate is the average of.
	rateWindow = 10
)

// sample is what happened within one interval. A latency of 0 means that no campaign was
// finished in it.
type sample struct {
	at               int64   // Unix seconds of its end
	decided, shipped float32 // notifications per second
	median, slowest  float32 // milliseconds from message to both sinks
}

// ring keeps the samples of the last fifteen minutes, in a memory of fixed size.
type ring struct {
	mu      sync.Mutex // guards what follows
	samples [ringLength]sample
	count   int64 // of all samples that were ever taken: sample n lies at n modulo the length
	last    stream.Counters
	lastAt  time.Time
	total   stream.Latencies // of the samples in the ring
	buckets [ringLength]stream.Latencies
}

// add takes a sample of the counters. They fall when an engine is replaced: then they
// count from zero.
func (r *ring) add(now time.Time, c stream.Counters) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lastAt.IsZero() {
		r.last, r.lastAt = c, now
		return
	}
	if c.Decided < r.last.Decided || c.Shipped < r.last.Shipped {
		r.last = stream.Counters{}
	}
	seconds := max(now.Sub(r.lastAt).Seconds(), 0.001)
	s := sample{at: now.Unix(), decided: float32(float64(c.Decided-r.last.Decided) / seconds), shipped: float32(float64(c.Shipped-r.last.Shipped) / seconds)}
	at := int(r.count % int64(ringLength))
	for i := range c.Latencies {
		n := max(c.Latencies[i]-r.last.Latencies[i], 0)
		r.total[i] += n - r.buckets[at][i]
		r.buckets[at][i] = n
	}
	s.median, s.slowest = estimateQuantile(&r.buckets[at], 0.5), estimateQuantile(&r.buckets[at], 1)
	r.samples[at] = s
	r.count++
	r.last, r.lastAt = c, now
}

// samplesSince returns the samples from number from on, the oldest first, and the number of the
// next one. from 0 returns all that are kept.
func (r *ring) samplesSince(from int64) ([]sample, int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	from = max(from, r.count-int64(ringLength))
	out := make([]sample, 0, r.count-from)
	for n := from; n < r.count; n++ {
		out = append(out, r.samples[n%int64(ringLength)])
	}
	return out, r.count
}

// latencyQuantiles returns the median and the 99th percentile of the window, in milliseconds; 0 if
// no campaign was finished in it.
func (r *ring) latencyQuantiles() (median, p99 float32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return estimateQuantile(&r.total, 0.5), estimateQuantile(&r.total, 0.99)
}

// estimateQuantile returns the upper end of the bucket that holds the quantile q, in
// milliseconds; 0 where nothing was counted.
func estimateQuantile(l *stream.Latencies, q float64) float32 {
	var all, seen int64
	for _, n := range l {
		all += n
	}
	for i, n := range l {
		if seen += n; n > 0 && float64(seen) >= q*float64(all) {
			return float32(float64(stream.LatencyBound(i)) / float64(time.Millisecond))
		}
	}
	return 0
}

// minute sums up the samples of one minute, for the table.
type minute struct {
	At               time.Time
	Decided, Shipped float64 // notifications per second, on average
	Median, Slowest  float64 // milliseconds; of the slowest sample
}

// groupMinutes sums up samples by the minute, the newest first.
func groupMinutes(samples []sample) []minute {
	var out []minute
	n := 0.0
	for i := len(samples) - 1; i >= 0; i-- {
		s := &samples[i]
		at := time.Unix(s.at, 0).UTC().Truncate(time.Minute)
		if len(out) == 0 || !out[len(out)-1].At.Equal(at) {
			out, n = append(out, minute{At: at}), 0
		}
		m := &out[len(out)-1]
		n++
		m.Decided += (float64(s.decided) - m.Decided) / n
		m.Shipped += (float64(s.shipped) - m.Shipped) / n
		m.Median, m.Slowest = max(m.Median, float64(s.median)), max(m.Slowest, float64(s.slowest))
	}
	return out
}

// computeRate returns the average of the last samples, in notifications per second.
func computeRate(samples []sample) float64 {
	last := samples[max(0, len(samples)-rateWindow):]
	if len(last) == 0 {
		return 0
	}
	sum := 0.0
	for _, s := range last {
		sum += float64(s.shipped)
	}
	return sum / float64(len(last))
}
