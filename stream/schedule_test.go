package stream

import (
	"fmt"
	"testing"

	"dinnerbell/stream/campaign"
)

// served runs steps over campaigns of the given audiences and returns, per
// step, how many clients each campaign got.
func served(t *testing.T, s *schedule, left map[string]int, room int) map[string]int {
	t.Helper()
	got := map[string]int{}
	err := s.serveCampaigns(room, func() bool { return false }, func(l *liveCampaign, room int) (int, bool, error) {
		n := min(room, left[l.ID])
		left[l.ID] -= n
		got[l.ID] += n
		return n, left[l.ID] == 0, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func newLive(id string) *liveCampaign {
	return &liveCampaign{Campaign: &campaign.Campaign{ID: id, RestaurantID: "r", Start: 1, End: 1000}}
}

// A step with a small campaign is short, for it to be committed soon; the step behind it
// is not, whatever it has.
func TestSmallCampaignIsServedInTheMiddleOfALargeOne(t *testing.T) {
	s, left := newSchedule(), map[string]int{"large": 1_000_000}
	s.add(newLive("large"))
	served(t, s, left, 2000)
	for n, want := range []int{250, 1900, 250, 1900} {
		id := fmt.Sprint("small ", n)
		s.add(newLive(id))
		left[id] = 100
		got := served(t, s, left, 2000)
		if got[id] != 100 {
			t.Errorf("the small campaign got %d of 100 in the next step", got[id])
		}
		if g := got["large"]; g != want && g != want+1 {
			t.Errorf("step %d: the large campaign got %d, want %d", n, g, want)
		}
	}
	if got := served(t, s, left, 2000)["large"]; got < 2000 {
		t.Errorf("a step without a small campaign has %d", got)
	}
}

func TestSmallCampaignsDoNotStarveALargeOne(t *testing.T) {
	for _, audience := range []int{1, 10, 375, 450, 499, 500, 1000, 10_000} {
		s, left := newSchedule(), map[string]int{"large": 1_000_000}
		s.add(newLive("large"))
		served(t, s, left, 2000)
		for i := range 3000 {
			id := fmt.Sprint(i)
			left[id] = audience
			s.add(newLive(id))
		}
		got, sum := served(t, s, left, 2000), 0
		for _, n := range got {
			sum += n
		}
		if got["large"] < 400 || sum > 2500 {
			t.Errorf("beside audiences of %d the large campaign got %d of a step of 2000, which has %d", audience, got["large"], sum)
		}
	}
}

// Fresh campaigns get the room that the large ones leave of their share.
func TestRestOfTheStepIsUsed(t *testing.T) {
	s, left := newSchedule(), map[string]int{"rest": 1000}
	s.add(newLive("rest"))
	served(t, s, left, 990)
	for i := range 300 {
		id := fmt.Sprint(i)
		left[id] = 10
		s.add(newLive(id))
	}
	sum := 0
	for _, n := range served(t, s, left, 2000) {
		sum += n
	}
	if sum != 2000 {
		t.Errorf("a step of 2000 has %d, with more waiting", sum)
	}
}

// A small campaign for which a step has little room left is served whole.
func TestSmallCampaignIsNotSplit(t *testing.T) {
	s, left := newSchedule(), map[string]int{}
	for i := range 30 {
		id := fmt.Sprint(i)
		left[id] = 150
		s.add(newLive(id))
	}
	for id, n := range served(t, s, left, 2000) {
		if n != 150 {
			t.Errorf("campaign %s got %d of 150", id, n)
		}
	}
	if len(s.long) > 0 {
		t.Errorf("%d campaigns have a turn to come", len(s.long))
	}
}

// Campaigns are asked for as long as the fresh ones' share has room, not further.
func TestServeAsksForMoreWhileThereIsRoom(t *testing.T) {
	for _, c := range []struct {
		name  string
		large int // audience of a campaign that runs already
		want  int // campaigns of 10 that a step of 100 takes
	}{{"alone", 0, 10}, {"beside a large one", 1000, 8}} {
		s := newSchedule()
		if c.large > 0 {
			s.add(newLive("large"))
			served(t, s, map[string]int{"large": c.large}, 100)
		}
		asked := 0
		err := s.serveCampaigns(100, func() bool {
			if asked++; asked%2 == 0 { // an accepted message may have no clients to serve
				s.add(newLive(fmt.Sprint(asked)))
			}
			return true
		}, func(l *liveCampaign, room int) (int, bool, error) {
			if l.ID == "large" {
				return room, false, nil
			}
			return min(room, 10), true, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if asked != 2*c.want {
			t.Errorf("%s: %d campaigns of 10 in a step of 100, want %d", c.name, asked/2, c.want)
		}
	}
}

func TestLargeCampaignsShare(t *testing.T) {
	s, left := newSchedule(), map[string]int{}
	for _, id := range []string{"a", "b", "c", "d"} {
		left[id] = 100_000
		s.add(newLive(id))
	}
	total := map[string]int{}
	for range 40 {
		for id, n := range served(t, s, left, 2000) {
			total[id] += n
		}
	}
	for id, n := range total {
		if n < 15_000 || n > 25_000 {
			t.Errorf("%s got %d of 80,000 clients among four", id, n)
		}
	}
}

func TestReplacedAndEndedCampaignsAreNotServed(t *testing.T) {
	s, left := newSchedule(), map[string]int{"a": 10, "b": 10}
	old := newLive("a")
	s.add(old)
	s.add(newLive("b"))
	s.removeCampaign(old)
	ended := s.takeEnded(999)
	if len(ended) != 0 {
		t.Errorf("%d campaigns ended before their end", len(ended))
	}
	if got := served(t, s, left, 100); got["a"] != 0 || got["b"] != 10 {
		t.Errorf("got %v", got)
	}
	s.add(newLive("a"))
	if ended := s.takeEnded(1000); len(ended) != 1 || s.len() != 0 || s.bytes != 0 {
		t.Errorf("%d ended, %d left of %d bytes", len(ended), s.len(), s.bytes)
	}
}

func TestCampaignsOfOneIDAreContested(t *testing.T) {
	s := newSchedule()
	a, b, other := newLive("x"), newLive("x"), newLive("y")
	b.RestaurantID = "r2"
	s.add(a)
	s.add(other)
	s.add(b)
	if !a.contested.Load() || !b.contested.Load() || other.contested.Load() {
		t.Errorf("contested: %v %v %v", a.contested.Load(), b.contested.Load(), other.contested.Load())
	}
	s.removeCampaign(a)
	s.removeCampaign(b)
	if len(s.byID) != 1 {
		t.Errorf("%d ids are kept for one campaign", len(s.byID))
	}
}

// Every campaign that the intake accepts can be scheduled.
func FuzzAcceptedCampaignCanBePacked(f *testing.F) {
	f.Add(encodeCampaign(*example()))
	f.Fuzz(func(t *testing.T, value []byte) {
		c, err := campaign.Parse(value)
		if err != nil {
			return
		}
		if err := (&liveCampaign{Campaign: c}).packRestaurant(); err != nil {
			t.Errorf("accepted a campaign that cannot be packed: %v", err)
		}
	})
}
