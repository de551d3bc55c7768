package demo

import (
	"encoding/binary"
	"encoding/hex"
	"math"
	"math/rand/v2"
)

// audiences spreads total subscriptions over n restaurants as Zipf's law does
// (the k-th largest has 1/k of the largest), largest first, none empty. This is
// what popularity looks like: one restaurant with tens of thousands of
// subscribers and a long tail with a dozen. The sum is total; total ≥ n.
func audiences(total, n int) []int {
	var harmonic float64
	for k := 1; k <= n; k++ {
		harmonic += 1 / float64(k)
	}
	sizes := make([]int, n)
	left := total
	for k := range sizes {
		sizes[k] = max(1, int(float64(total)/harmonic/float64(k+1)))
		left -= sizes[k]
	}
	// Rounding down leaves a few; the floor of one each may have taken some.
	for k := 0; left != 0; k = (k + 1) % n {
		switch {
		case left > 0:
			sizes[k]++
			left--
		case sizes[k] > 1:
			sizes[k]--
			left++
		}
	}
	return sizes
}

// uuids makes n random version 4 UUIDs; the same ones for the same stream of
// random numbers, so that every demo shows the same town.
func uuids(r *rand.Rand, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = uuid(r)
	}
	return out
}

func uuid(r *rand.Rand) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], r.Uint64())
	binary.BigEndian.PutUint64(b[8:], r.Uint64())
	b[6] = b[6]&0x0f | 0x40 // version 4
	b[8] = b[8]&0x3f | 0x80 // RFC 9562 variant
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// town is the demo's population.
type town struct {
	restaurants []string // by audience, largest first
	sizes       []int    // subscribers of each
	clients     []string
}

func newTown(subscriptions, restaurants int) town {
	var seed [32]byte
	copy(seed[:], "dinnerbell demo")
	r := rand.New(rand.NewChaCha8(seed)) //nolint:gosec // sample data
	sizes := audiences(subscriptions, restaurants)
	return town{
		restaurants: uuids(r, restaurants),
		sizes:       sizes,
		// Twice the largest audience, so that half the town likes that one.
		clients: uuids(r, max(2*sizes[0], subscriptions/4)),
	}
}

// stride walks the clients in an order that is no order; a prime that does not
// divide their number visits each once.
const stride = 1_000_003

// subscribers calls add for each subscription of the k-th restaurant, each
// client at most once.
func (t town) subscribers(k int, add func(client, restaurant string)) {
	at := k * 7919 % len(t.clients)
	for range t.sizes[k] {
		add(t.clients[at], t.restaurants[k])
		at = (at + stride) % len(t.clients)
	}
}

// pick draws a restaurant so that every order of magnitude of audience comes
// equally often; drawn uniformly, nearly all would be from the long tail.
func (t town) pick(r *rand.Rand) int {
	return min(int(math.Pow(float64(len(t.restaurants)), r.Float64()))-1, len(t.restaurants)-1)
}
