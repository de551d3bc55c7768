package stream

import (
	"fmt"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/id"
)

// The delivered cache is lost in the middle of an edit's fan-out: Postgres knows
// who has the campaign, and how often it had to is counted. Nothing is left in
// the cache behind the fan-out.
func TestLostDeliveredCacheCostsTimeOnly(t *testing.T) {
	t.Parallel()
	all := clients("0000", 20_000)
	var first []string
	for i := 0; i < len(all); i += 2 {
		first = append(first, all[i])
	}
	w := newDeployment(t, 1, map[string][]string{"r1": first})
	w.cfg.StepClients = 50
	svc, _ := w.start()
	c := w.campaign("c", "r1")
	w.produce(0, encodeCampaign(c))
	w.expect(map[string][]string{"c": first})
	if s := svc.Status(); s.DeliveredMisses != 0 {
		t.Errorf("%d misses of a first message", s.DeliveredMisses)
	}

	w.subscribe(map[string][]string{"r1": all})
	c.Content = "edited"
	w.produce(0, encodeCampaign(c))
	envtest.Until(t, patience, func() error {
		if n := svc.Status().Notifications.Decided; n <= 10_000 {
			return fmt.Errorf("%d decided", n)
		}
		return nil
	})
	if w.countDelivered() == 0 {
		t.Error("the edit has nothing in the cache")
	}
	if err := w.store.ForgetAllDelivered(); err != nil {
		t.Fatal(err)
	}
	w.expect(map[string][]string{"c": all})
	if s := svc.Status(); s.DeliveredMisses == 0 {
		t.Error("no misses are counted")
	}
	if n := w.countDelivered(); n != 0 {
		t.Errorf("%d pairs are left", n)
	}
}

// An edit that turns out to be older than what stands leaves nothing in the cache.
func TestDeliveredCacheOfAnOlderMessageIsDropped(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 2, map[string][]string{"r1": clients("0000", 50)})
	w.start()
	now, c := time.Now(), w.campaign("c", "r1")
	w.produceAt(1, now, encodeCampaign(c))
	w.expect(map[string][]string{"c": w.subs["r1"]})
	c.Content = "older"
	w.produceAt(0, now.Add(-time.Second), encodeCampaign(c))
	w.awaitOffset(0, 1)
	if n := w.countDelivered(); n != 0 {
		t.Errorf("%d pairs are left", n)
	}
}

// A lane has so many clients in the cache and no more.
func TestDeliveredCacheIsBounded(t *testing.T) {
	t.Parallel()
	var c deliveredCache
	if !c.reserveRoom("a", deliveredClients-1) || c.reserveRoom("b", 2) || !c.reserveRoom("b", 1) {
		t.Errorf("%d clients", c.total)
	}
	c.releaseRoom([]id.ID{"a"})
	if !c.reserveRoom("b", deliveredClients-1) || c.reserveRoom("a", 1) {
		t.Errorf("%d clients", c.total)
	}
	c.releaseRoom([]id.ID{"b"})
	if c.total != 0 || len(c.names) != 0 {
		t.Errorf("%+v", c.names)
	}
}
