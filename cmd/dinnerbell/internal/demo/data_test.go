package demo

import (
	"encoding/json"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/workload"
)

func TestAudiences(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ total, n int }{{200_000, 2_000}, {3_000, 40}, {40, 40}, {41, 40}, {7, 1}} {
		sizes := audienceSizes(tc.total, tc.n)
		sum := 0
		for _, s := range sizes {
			sum += s
		}
		if len(sizes) != tc.n || sum != tc.total || slices.Min(sizes) < 1 {
			t.Errorf("audiences(%d, %d): %d of them, sum %d, smallest %d", tc.total, tc.n, len(sizes), sum, slices.Min(sizes))
		}
		if !slices.IsSortedFunc(sizes, func(a, b int) int { return b - a }) {
			t.Errorf("audiences(%d, %d) are not largest first: %v…", tc.total, tc.n, sizes[:min(5, tc.n)])
		}
	}
	sizes := audienceSizes(200_000, 2_000)
	if sizes[0] < 20_000 || sizes[1]*2 < sizes[0]-2 || sizes[1]*2 > sizes[0]+2 || sizes[1999] > 20 {
		t.Errorf("not skewed as Zipf's law has it: %v … %d", sizes[:3], sizes[1999])
	}
}

func TestPopulation(t *testing.T) {
	t.Parallel()
	p := newPopulation(20_000, 200)
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	rows := 0
	for k := range p.restaurants {
		seen := map[string]bool{}
		p.eachSubscriber(k, func(client, restaurant string) {
			if seen[client] || restaurant != p.restaurants[k] || !form.MatchString(client) || !form.MatchString(restaurant) {
				t.Fatalf("restaurant %d: (%s, %s), seen before: %t", k, client, restaurant, seen[client])
			}
			seen[client] = true
			rows++
		})
	}
	if rows != 20_000 {
		t.Errorf("%d subscriptions, want 20000", rows)
	}
	r := rand.New(rand.NewPCG(1, 2))
	small, large := 0, 0
	for range 10_000 {
		switch k := p.pickRestaurant(r); {
		case k < 0 || k >= 200:
			t.Fatalf("picked restaurant %d of 200", k)
		case k < 10:
			large++
		case k >= 100:
			small++
		}
	}
	if large < 2_000 || small < 500 {
		t.Errorf("of 10000 picks, %d from the ten largest and %d from the lower half", large, small)
	}
}

// The round has every kind of campaign that it promises, and its preparations
// touch no restaurant that another campaign is joined with earlier.
func TestPlan(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	for _, n := range []int{MinRestaurants, 2_000} {
		people := newPopulation(100*n, n)
		prepared, plain := map[string]bool{}, map[string]bool{}
		count := map[string]int{}
		messages := planMessages(people, now)
		for _, m := range messages {
			switch {
			case m.raw != nil:
				count["(dead)"]++
				if c := (workload.Campaign{}); json.Unmarshal(m.raw, &c) == nil && c.End != 0 {
					t.Errorf("%s is no bad campaign", m.raw)
				}
				continue
			case m.End <= now.Unix():
				count["(expired)"]++
			case m.Start > now.Unix():
				count["(scheduled)"]++
			}
			if (m.End <= now.Unix()) == m.notifies {
				t.Errorf("%s: ends at %d, notifies: %t", m.ID, m.End, m.notifies)
			}
			count[m.ID]++
			if m.prepare != "" {
				prepared[m.Restaurant] = true
			} else {
				plain[m.Restaurant] = true
			}
		}
		for r := range prepared {
			if plain[r] {
				t.Errorf("the subscriptions of %s change during the round", r)
			}
		}
		if len(messages) < 20 || count["(dead)"] != 2 || count["(expired)"] != 1 || count["(scheduled)"] != 1 || count["repeated"] != 3 || count["the-largest"] != 1 {
			t.Errorf("%d messages: %v", len(messages), count)
		}
	}
}

func TestBar(t *testing.T) {
	t.Parallel()
	last := 0
	for _, n := range []int{0, 1, 10, 100, 1_000, 10_000, 20_000} {
		b := drawBar(n, 10_000)
		if len([]rune(b)) != barLength {
			t.Errorf("bar(%d) = %q, want %d characters", n, b, barLength)
		}
		length := strings.Count(b, "█")
		if length < 1 || length < last {
			t.Errorf("bar(%d) has length %d after %d", n, length, last)
		}
		last = length
	}
	if last != barLength {
		t.Errorf("the largest has length %d", last)
	}
}
