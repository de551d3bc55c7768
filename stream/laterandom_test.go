package stream

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state"
	"dinnerbell/state/id"
	"dinnerbell/stream/operator"
)

// randomDay makes everything happen at once that may come between a subscription and the
// campaigns of its restaurant.
type randomDay struct {
	*lateDeployment
	*rand.Rand
	stores      [2]*state.Store
	lagging     int // transactions that the service's store does not have yet
	committed   atomic.Uint64
	svc         *Service
	stop        func()
	late        int64 // clients notified late by former services
	client      *kgo.Client
	at          time.Time
	sent        [2]int64
	subs        map[[2]string]id.RowID     // present subscriptions
	ever        map[[2]string]bool         // all pairs that there ever were
	restaurants map[string]map[string]bool // of each campaign id, ever
}

// strict waits until the service's store has everything.
func (w *randomDay) strict(s *state.Store) func(context.Context) error {
	return func(ctx context.Context) error {
		applied, stop := s.WatchApplied()
		defer stop()
		for want := id.LSN(w.committed.Load()); s.EndLSN() < want; {
			select {
			case <-applied:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
}

func (w *randomDay) restart() {
	if w.stop != nil {
		w.stop()
		w.late += w.svc.Status().LateNotified
	}
	w.store = w.stores[w.IntN(2)]
	w.lagging = w.IntN(4)
	w.catchUp(w.store, w.lagging)
	w.cfg.Committed = w.strict(w.store)
	w.svc, w.stop = w.start()
}

// change makes a transaction of the source; the mirror may lag.
func (w *randomDay) change() {
	var changes []id.Change
	for range 1 + w.IntN(3) {
		pair := [2]string{fmt.Sprint("r", w.IntN(3)), fmt.Sprintf("client %03d", w.IntN(400))}
		if row, there := w.subs[pair]; there {
			changes = append(changes, id.Change{Op: id.Delete, Row: row})
			delete(w.subs, pair)
			continue
		}
		w.row++
		row := id.PackRow(fmt.Sprint(w.row))
		changes = append(changes, id.Change{Op: id.Insert, Row: row, Restaurant: packID(w, pair[0]), Client: packID(w, pair[1])})
		w.subs[pair], w.ever[pair] = row, true
	}
	w.log = append(w.log, &state.Batch{Changes: changes, End: id.LSN(1000 + 8*len(w.log))})
	w.committed.Store(uint64(w.log[len(w.log)-1].End))
	w.lagging = w.IntN(w.lagging + 2)
	w.pause(6)
	w.catchUp(w.store, w.lagging)
}

// pause waits for less than some milliseconds.
func (w *randomDay) pause(most int) { <-time.After(time.Duration(w.IntN(most)) * time.Millisecond) }

// rebuild loads the present subscriptions into the service's store, as of now.
func (w *randomDay) rebuild() {
	loader, err := w.store.NewGeneration()
	if err != nil {
		w.Fatal(err)
	}
	for pair, row := range w.subs {
		if err := loader.Add(row, packID(w, pair[0]), packID(w, pair[1])); err != nil {
			w.Fatal(err)
		}
	}
	if err := loader.Finish(state.Source{SystemID: "test"}, id.LSN(1000+8*(len(w.log)-1))); err != nil {
		w.Fatal(err)
	}
	w.lagging = 0
}

// message sends a first message, an edit, a repeat or a cancel to either lane.
func (w *randomDay) message(base string) {
	c := w.campaign(fmt.Sprint("c", w.IntN(4)), fmt.Sprint("r", w.IntN(3)))
	c.Content, c.Created, c.Start, c.End = fmt.Sprint(base, w.IntN(4)), 5, w.at.Unix()-1000, w.at.Unix()+7200
	if w.IntN(8) == 0 {
		c.Start, c.End = 100, 200
	}
	lane := w.IntN(2)
	w.at = w.at.Add(time.Millisecond)
	r := &kgo.Record{Topic: w.cfg.Kafka.Campaigns, Partition: int32(lane), Value: encodeCampaign(c), Timestamp: w.at}
	if err := w.client.ProduceSync(w.Context(), r).FirstErr(); err != nil {
		w.Fatal(err)
	}
	w.sent[lane]++
	if w.restaurants[c.ID] == nil {
		w.restaurants[c.ID] = map[string]bool{}
	}
	w.restaurants[c.ID][c.RestaurantID] = true
}

// Random subscriptions, messages on two partitions, restarts with a mirror that is
// behind, another one, rebuilds, pauses: at the end every subscriber of a campaign that is
// live has it, once, and nobody who was never subscribed has one.
func TestLateSubscribersOfRandomCampaigns(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := &randomDay{lateDeployment: newLateDeployment(t, 2, nil), Rand: rand.New(rand.NewPCG(seed, 0)), at: time.Now().Add(-time.Hour),
		subs: map[[2]string]id.RowID{}, ever: map[[2]string]bool{}, restaurants: map[string]map[string]bool{}}
	w.cfg.StepClients = 3
	w.stores = [2]*state.Store{w.store, w.openStore()}
	w.client = w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	w.log = append(w.log, &state.Batch{End: 1000})
	w.slowSteps("0.002")
	w.restart()
	paused := ""
	for range 400 {
		switch n := w.IntN(100); {
		case n < 80:
			w.change()
		case n < 84:
			w.message(fmt.Sprint("content ", n%3, " "))
		case n < 86:
			w.restart()
		case n < 87 && w.IntN(4) == 0:
			w.rebuild()
		case n < 90 && paused == "":
			paused = fmt.Sprint("c", w.IntN(4))
			_, _ = operator.Operate(t.Context(), w.cfg.Sink, operator.Pause, paused, "", "test") // there may be nothing to pause
		case n < 90 && w.IntN(2) == 0:
			_, _ = operator.Operate(t.Context(), w.cfg.Sink, operator.Resume, paused, "", "test")
			paused = ""
		default:
			w.pause(20)
		}
	}
	if paused != "" {
		_, _ = operator.Operate(t.Context(), w.cfg.Sink, operator.Resume, paused, "", "test")
	}
	w.catchUp(w.store, 0)
	w.awaitOffset(0, w.sent[0])
	w.awaitOffset(1, w.sent[1])
	envtest.Until(t, patience, w.missing)
	w.handled(w.svc)
	if err := w.missing(); err != nil {
		t.Error(err)
	}
	w.checkNobodyElse()
	w.checkCounts()
	t.Logf("%d transactions, %d messages, %d notifications, %d of them late", len(w.log), w.sent[0]+w.sent[1], w.db.Int(`SELECT count(*) FROM subscribers_feedback`), w.late+w.svc.Status().LateNotified)
}

// missing returns an error while a subscriber of a live campaign does not have it, or the
// sinks differ.
func (w *randomDay) missing() error {
	if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE state NOT IN ('finished', 'expired')`); n > 0 {
		return fmt.Errorf("%d campaigns are not finished", n)
	}
	for pair := range w.subs {
		if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign c WHERE c.restaurant_id = $1 AND c.state = 'finished'
 AND NOT EXISTS (SELECT FROM subscribers_feedback f WHERE f.adv_campaign_id = c.adv_campaign_id AND f.client_id = $2)`, pair[0], pair[1]); n > 0 {
			return fmt.Errorf("%s, a subscriber of %s, lacks %d campaigns", pair[1], pair[0], n)
		}
	}
	return sameNotes(w.rows(), w.records())
}

func (w *randomDay) checkNobodyElse() {
	w.Helper()
	got := map[string]bool{}
	for _, n := range w.rows() {
		if pair := n.ID + " " + n.client; got[pair] {
			w.Errorf("%s twice", pair)
		} else {
			got[pair] = true
		}
		if !w.ever[[2]string{n.RestaurantID, n.client}] || !w.restaurants[n.ID][n.RestaurantID] {
			w.Errorf("%s has %s for %s and was never subscribed to it", n.client, n.ID, n.RestaurantID)
		}
	}
}
