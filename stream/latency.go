package stream

import (
	"math/bits"
	"time"
)

// LatencyBuckets is how many buckets Latencies has.
const LatencyBuckets = 64

// Latencies count the campaigns that were finished, by the time from their message (as
// Kafka dates it; from their start if that was later) until their last notification was
// in both sinks. LatencyBound gives the end of each bucket; four of them double the time.
type Latencies [LatencyBuckets]int64

// LatencyBound is the upper end of a bucket: 4, 5, 6, 7, 8, 10, 12, 14, 16 ms and so
// on. The last bucket has no end.
func LatencyBound(bucket int) time.Duration {
	const least = 4 * time.Millisecond
	return least << (bucket / 4) * time.Duration(4+bucket%4) / 4
}

// latencyBucket returns the bucket of a latency.
func latencyBucket(d time.Duration) int {
	const least = uint64(4 * time.Millisecond)
	n := uint64(max(d, 0))
	if n < least {
		return 0
	}
	doubled := bits.Len64(n/least) - 1
	quarter := int((n>>doubled - least) / (least / 4))
	return min(4*doubled+min(quarter, 3)+1, LatencyBuckets-1)
}

// Counters are the counts that a chart samples. Reading them takes no lock.
type Counters struct {
	Decided, Shipped int64
	Latencies        Latencies
}

// Counters returns the counts as they are now. It waits for nothing: it may be called
// often, beside work at full speed.
func (s *Service) Counters() (c Counters) {
	c.Decided, c.Shipped = s.counters.decided.Load(), s.counters.shipped.Load()
	for i := range c.Latencies {
		c.Latencies[i] = s.counters.latency[i].Load()
	}
	return c
}

// observeLatency counts a finished campaign. It leaves out a replayed one, whose message
// is old, and one whose message's time is not known.
func (c *counters) observeLatency(f *finishedCampaign, now time.Time) {
	if f.sent == 0 || f.replayed || f.what != RecentFinished {
		return
	}
	c.latency[latencyBucket(now.Sub(dueAt(f.Start, f.sent)))].Add(1)
}
