package stream

import (
	"hash/maphash"
	"sync"

	"dinnerbell/state/id"
)

// restaurantSet holds the restaurants of the lane's campaigns that may not be over, so
// that a change of the subscriptions of another restaurant costs no look-up. It keeps
// 64 bits of a restaurant's id and the latest end of its campaigns: a restaurant that
// it has in error costs a look-up that finds nothing.
type restaurantSet struct {
	seed maphash.Seed

	mu     sync.Mutex
	ends   map[uint64]int64 // Unix seconds
	pruned int64            // when ended ones were last removed
}

// keepRestaurant is how long a restaurant stays after its last campaign's end, in
// seconds: the clock may have been ahead and be set back.
const keepRestaurant = 2 * 60 * 60

// pruneRestaurants is how often ended restaurants are removed, in seconds.
const pruneRestaurants = 10 * 60

func newRestaurantSet() *restaurantSet {
	return &restaurantSet{seed: maphash.MakeSeed(), ends: map[uint64]int64{}}
}

// add notes a campaign of a restaurant.
func (s *restaurantSet) add(restaurant id.ID, end, now int64) {
	h := maphash.String(s.seed, string(restaurant))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends[h] = max(s.ends[h], end)
	if now-s.pruned < pruneRestaurants && now >= s.pruned {
		return
	}
	s.pruned = now
	for h, end := range s.ends {
		if end < now-keepRestaurant {
			delete(s.ends, h)
		}
	}
}

// has reports whether the restaurant may have a campaign that is not over.
func (s *restaurantSet) has(restaurant id.ID) bool {
	h := maphash.String(s.seed, string(restaurant))
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.ends[h]
	return ok
}
