package demo

import (
	"math"
	"math/rand/v2"

	"dinnerbell/internal/testenv/workload"
)

// audienceSizes spreads total subscriptions over n restaurants as Zipf's law does
// (the k-th largest has 1/k of the largest), largest first, each at least one.
// Popularity has this shape: one restaurant with tens of thousands of subscribers
// and a long tail with a dozen. The sum is total; total ≥ n.
func audienceSizes(total, n int) []int {
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

// population is the demo's restaurants, each with its own audience, and their
// subscribers. Every demo has the same one.
type population struct {
	workload.Population
	restaurants []string // by audience, largest first
	sizes       []int    // subscribers of each
}

func newPopulation(subscriptions, restaurants int) population {
	p := population{sizes: audienceSizes(subscriptions, restaurants)}
	groups := make([]workload.Group, 0, restaurants)
	for k, size := range p.sizes {
		groups = append(groups, workload.Group{Audience: size, Restaurants: 1})
		p.restaurants = append(p.restaurants, workload.RestaurantID(k))
	}
	// Twice the largest audience, so that half of all clients like that restaurant.
	p.Population = workload.NewPopulation(max(2*p.sizes[0], subscriptions/4), groups...)
	return p
}

// eachSubscriber calls add for each subscription of the k-th restaurant, each
// client at most once.
func (p population) eachSubscriber(k int, add func(client, restaurant string)) {
	for i := range p.sizes[k] {
		add(workload.ClientID(p.Subscriber(k, i)), p.restaurants[k])
	}
}

// pickRestaurant draws a restaurant so that every order of magnitude of audience comes
// equally often; drawn uniformly, nearly all would be from the long tail.
func (p population) pickRestaurant(r *rand.Rand) int {
	return min(int(math.Pow(float64(len(p.restaurants)), r.Float64()))-1, len(p.restaurants)-1)
}
