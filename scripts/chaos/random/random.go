// Package random draws from streams of random numbers that follow from the seed
// and the number of the round.
package random

import (
	"math/rand/v2"
	"time"
)

// Streams of random numbers: one for each part that draws, so that the timing of
// one part does not change what another draws.
const (
	FaultStream = iota
	SubscriptionStream
	CampaignStream
	WriterStream // one per writer from here on
)

func NewStream(seed uint64, round, stream int) *rand.Rand {
	return rand.New(rand.NewPCG(seed, uint64(round)<<16|uint64(stream))) //nolint:gosec // it must repeat
}

// Duration draws a duration.
func Duration(r *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(r.Int64N(int64(to-from)+1))
}

// WeightedIndex draws an index by weights.
func WeightedIndex(r *rand.Rand, weights []int) int {
	sum := 0
	for _, w := range weights {
		sum += w
	}
	n := r.IntN(sum)
	for i, w := range weights {
		if n -= w; n < 0 {
			return i
		}
	}
	return 0
}
