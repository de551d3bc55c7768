package stream

import (
	"testing"
	"time"
)

// Each latency lies below the end of its bucket, and at most a quarter below it.
func TestLatencyBuckets(t *testing.T) {
	t.Parallel()
	for d := 4 * time.Millisecond; d < time.Minute; d += 137 * time.Microsecond {
		end := LatencyBound(latencyBucket(d))
		if d >= end || float64(end) > 1.25*float64(d)+1 {
			t.Fatalf("%s is in the bucket that ends at %s", d, end)
		}
	}
	for _, d := range []time.Duration{-time.Hour, 0, 3 * time.Millisecond} {
		if b := latencyBucket(d); b != 0 {
			t.Errorf("%s is in bucket %d", d, b)
		}
	}
	if b := latencyBucket(1 << 62); b != LatencyBuckets-1 {
		t.Errorf("the longest time is in bucket %d", b)
	}
	for i := 1; i < LatencyBuckets; i++ {
		if LatencyBound(i) <= LatencyBound(i-1) {
			t.Errorf("bucket %d ends at %s, the one before at %s", i, LatencyBound(i), LatencyBound(i-1))
		}
	}
}

func TestTitleIsTheBeginning(t *testing.T) {
	t.Parallel()
	long := ""
	for range 100 {
		long += "ё"
	}
	if got := titleOf(long); got != long[:120]+"…" {
		t.Errorf("title %q", got)
	}
	if got := titleOf("a" + long); got != "a"+long[:118]+"…" {
		t.Errorf("title %q", got)
	}
	if got := titleOf("Two pizzas for one"); got != "Two pizzas for one" {
		t.Errorf("title %q", got)
	}
}
