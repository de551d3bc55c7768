package stream

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/campaign"
)

func TestInputLag(t *testing.T) {
	t.Parallel()
	base := time.Unix(10_000, 0)
	at := func(s int) time.Time { return base.Add(time.Duration(s) * time.Second) }
	read := func(g *inputLag, produced int, offsets ...int64) {
		var batch []message
		for _, o := range offsets {
			m := campaignMessage(o)
			m.time = at(produced).UnixMilli()
			batch = append(batch, m)
		}
		g.noteRead(batch)
	}
	for name, c := range map[string]struct {
		act      func(g *inputLag)
		next     int64
		messages int64
		behind   time.Duration
	}{
		"never looked":             {func(*inputLag) {}, 5, -1, -1},
		"looked too long ago":      {func(g *inputLag) { g.noteEnd(9, 5, at(-16)) }, 5, -1, -1},
		"at the end":               {func(g *inputLag) { g.noteEnd(5, 5, at(-1)) }, 5, 0, 0},
		"past the end of the look": {func(g *inputLag) { g.noteEnd(5, 5, at(-1)) }, 7, 0, 0},
		"not read yet":             {func(g *inputLag) { g.noteEnd(9, 5, at(-7)); g.noteEnd(9, 5, at(-1)) }, 5, 4, 7 * time.Second},
		"read":                     {func(g *inputLag) { g.noteEnd(9, 5, at(-1)); read(g, -100, 5, 6) }, 5, 4, 100 * time.Second},
		"half of a batch decided":  {func(g *inputLag) { g.noteEnd(9, 5, at(-1)); read(g, -100, 5, 6) }, 6, 3, 100 * time.Second},
		"a batch decided":          {func(g *inputLag) { g.noteEnd(7, 5, at(-7)); g.noteEnd(9, 5, at(-3)); read(g, -100, 5, 6) }, 7, 2, 3 * time.Second},
		"a clock that is ahead":    {func(g *inputLag) { g.noteEnd(9, 5, at(-1)); read(g, 100, 5, 6) }, 5, 4, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := &inputLag{}
			c.act(g)
			if messages, behind := g.lag(c.next, base); messages != c.messages || behind != c.behind {
				t.Errorf("%d messages, %s; want %d, %s", messages, behind, c.messages, c.behind)
			}
		})
	}
}

// The memory of a lane that falls behind for days is bounded, and the oldest end stays.
func TestInputLagIsBounded(t *testing.T) {
	t.Parallel()
	g, now := &inputLag{}, time.Unix(10_000, 0)
	for i := range 10_000 {
		g.noteEnd(int64(i+1), 0, now.Add(time.Duration(i)*time.Second))
	}
	if len(g.ends) > maxEndMarks {
		t.Errorf("%d ends are remembered, want %d at most", len(g.ends), maxEndMarks)
	}
	if messages, behind := g.lag(0, now.Add(10_000*time.Second)); messages != 10_000 || behind != 10_000*time.Second {
		t.Errorf("%d messages, %s", messages, behind)
	}
}

func campaignMessage(offset int64) message {
	return message{offset: offset, campaign: &campaign.Campaign{}}
}

// observed collects what an Observer receives.
type observed struct {
	mu   sync.Mutex
	list []float64
}

func (o *observed) Observe(seconds float64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, seconds)
}

func (o *observed) wants(t *testing.T, name string, n int, least, most time.Duration) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.list) != n {
		t.Errorf("%s: observed %v, want %d", name, o.list, n)
	}
	for _, s := range o.list {
		if s < least.Seconds() || s > most.Seconds() {
			t.Errorf("%s: %v s, want between %s and %s", name, s, least, most)
		}
	}
}

// awaitLane waits until the service's only lane is as wanted.
func awaitLane(t *testing.T, svc *Service, want func(l LaneStatus) bool) LaneStatus {
	t.Helper()
	var last LaneStatus
	envtest.Until(t, patience, func() error {
		lanes := svc.Status().Lanes
		if len(lanes) == 1 && want(lanes[0]) {
			last = lanes[0]
			return nil
		}
		return fmt.Errorf("lanes are %+v", lanes)
	})
	return last
}

// A campaign that waits for fresh subscriptions is late although all messages are
// accepted, and messages that Postgres does not take are late although none is accepted.
func TestLatenessIsSeen(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 20)})
	barrier := &shutter{}
	w.barrier = barrier
	var decided, delivered, shipped observed
	w.cfg.Durations = Durations{Decided: &decided, Delivered: &delivered, Shipped: &shipped}
	svc, stop := w.start()
	awaitLane(t, svc, func(l LaneStatus) bool { return l.LagMessages == 0 && l.Lag == 0 && l.Oldest == 0 })

	barrier.shut()
	late := w.campaign("late", "r1")
	late.Start = time.Now().Unix() - 3600 // it is due when it is produced
	w.produce(0, encodeCampaign(late))
	const wait = time.Second
	awaitLane(t, svc, func(l LaneStatus) bool { return l.NextOffset == 1 && l.LagMessages == 0 && l.Oldest > wait })
	barrier.open()
	w.expect(map[string][]string{"late": w.subs["r1"]})
	awaitLane(t, svc, func(l LaneStatus) bool { return l.Oldest == 0 && l.Decided == l.Shipped })
	decided.wants(t, "decided", 1, wait, patience)
	delivered.wants(t, "delivered", 1, wait, patience)
	shipped.wants(t, "shipped", int(svc.Status().Lanes[0].Shipped), 0, patience)

	lock, err := w.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Exec(t.Context(), `LOCK TABLE subscribers_feedback`); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		w.produce(0, encodeCampaign(w.campaign(fmt.Sprint("c", i), "r1")))
	}
	awaitLane(t, svc, func(l LaneStatus) bool { return l.LagMessages > 0 && l.Lag > wait })
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitLane(t, svc, func(l LaneStatus) bool {
		return l.LagMessages == 0 && l.Lag == 0 && l.Oldest == 0 && l.NextOffset == 4 && l.Decided == l.Shipped
	})
	stop()
	decided.wants(t, "decided", 4, 0, patience)
	delivered.wants(t, "delivered", 4, 0, patience)
}
