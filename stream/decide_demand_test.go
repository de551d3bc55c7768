package stream

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
)

// While the committer cannot send a step, the decider builds none: a small campaign that
// arrives in that time is in the next step that the committer gets.
func TestSmallCampaignIsInTheNextStep(t *testing.T) {
	t.Parallel()
	const most = 100
	w := &deployment{TB: t, subs: map[string][]string{"whale": clients("0000", 40*most), "r1": clients("0001", 3)}}
	store := w.openStore()
	svc := New(Config{Config: takeover.Config{StepClients: most}}, store, noBarrier{})
	d := newDecider(&lane{svc: svc}, svc.cfg)
	d.claim = &takeover.Claim{Feedback: sink.ContractTable(), Limits: topic.Limits{Notification: 1 << 20}}
	d.delivered = &deliveredCache{store: store}
	arrivals, demand, steps := make(chan messageBatch), make(chan struct{}), make(chan *step)
	d.arrivals, d.demand, d.steps = arrivals, demand, steps
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = d.run(ctx)
	}()
	defer func() { cancel(); <-ended }()

	offset := int64(0)
	send := func(restaurant string) {
		c := w.campaign("of "+restaurant, restaurant)
		m := message{offset: offset, campaign: &c, fingerprint: c.Fingerprint(), fresh: time.Now(), received: time.Now()}
		select {
		case arrivals <- messageBatch{messages: []message{m}}:
		case <-time.After(patience):
			t.Fatal("the decider receives no message while the committer cannot send a step")
		}
		offset++
	}
	restaurantsOf := func(st *step) (list []string) {
		for _, p := range st.picks {
			list = append(list, p.live.RestaurantID)
		}
		slices.Sort(list)
		return list
	}
	send("whale")
	demand <- struct{}{}
	if got := restaurantsOf(<-steps); !slices.Equal(got, []string{"whale"}) {
		t.Fatalf("the first step is for %v", got)
	}
	send("r1") // the committer is busy, and the decider has work
	demand <- struct{}{}
	if got := restaurantsOf(<-steps); !slices.Equal(got, []string{"r1", "whale"}) {
		t.Errorf("the step behind the small campaign's arrival is for %v", got)
	}
}

// While the committer cannot send a step, which takes as long as Kafka is down, the status
// counts the campaigns that the decider has received, and knows since when they are due.
func TestWaitingCampaignsAreCountedWithoutDemand(t *testing.T) {
	t.Parallel()
	w := &deployment{TB: t, subs: map[string][]string{"r1": clients("0001", 3)}}
	store := w.openStore()
	svc := New(Config{Config: takeover.Config{StepClients: 100}}, store, noBarrier{})
	d := newDecider(&lane{svc: svc}, svc.cfg)
	d.delivered = &deliveredCache{store: store}
	list, ended := make(chan []*liveCampaign), make(chan struct{})
	d.due, d.demand = list, make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(ended)
		_ = d.run(ctx)
	}()
	defer func() { cancel(); <-ended }()

	c := w.campaign("waits", "r1")
	due := time.Now().Truncate(time.Second)
	list <- []*liveCampaign{{Campaign: &c, due: due}}
	envtest.Until(t, patience, func() error {
		d.lane.mu.Lock()
		defer d.lane.mu.Unlock()
		if live, oldest := d.lane.counts.live, d.lane.oldestDueLocked(); live != 1 || !oldest.Equal(due) {
			return fmt.Errorf("%d campaigns are live, the oldest due at %s; want one, at %s", live, oldest, due)
		}
		return nil
	})
}
