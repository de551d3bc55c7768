// Package random draws from streams of random numbers that follow from the seed
// and the number of the round.
package random

import (
	"math/rand/v2"
	"time"
)

// Streams of random numbers. Each part of the program has its own, so that the
// timing of one part does not change the numbers of another.
const (
	FaultStream = iota
	SubscriptionStream
	CampaignStream
	WriterStream // the first writer's; the next writers' follow
)

// NewStream returns a stream of a round.
func NewStream(seed uint64, round, stream int) *rand.Rand {
	return rand.New(rand.NewPCG(seed, uint64(round)<<16|uint64(stream))) //nolint:gosec // a round must repeat
}

// Duration draws a duration between the two, both included.
func Duration(r *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(r.Int64N(int64(to-from)+1))
}

// WeightedIndex draws an index; the odds of each are its weight.
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
