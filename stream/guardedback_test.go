package stream

import (
	"errors"
	"fmt"
	"math/bits"
	"testing"
	"time"

	"dinnerbell/internal/pgsession"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/id"
	"dinnerbell/stream/sink"
)

// A campaign of which the feedback table refuses one client goes back to ordinary steps
// once the clients of a step have been tried behind savepoints, and once as many behind
// the refused one were taken.
func TestCampaignOfOneRefusedClientGoesBackToOrdinarySteps(t *testing.T) {
	t.Parallel()
	all := clients("0000", 10_000)
	w := feedbackWorld(t, map[string][]string{"r1": all}, feedbackDDL(`, CHECK (client_id NOT LIKE '00000010-%')`))
	w.noteStepSizes()
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	w.expect(map[string][]string{"c1": append(all[:0x10:0x10], all[0x11:]...)})
	if n := w.db.Int(`SELECT max(n) FROM step_size`); n <= maxGuarded {
		t.Errorf("no step has more than %d notifications: the campaign is guarded to its end", n)
	}
	w.checkLanes(svc)
}

// A guarded step that waits for a lock in vain ends the session, as an ordinary one does,
// after one wait: nobody is left out because of the lock, and once it is gone, everybody
// but the refused client is notified.
func TestGuardedStepBehindALock(t *testing.T) {
	t.Parallel()
	all := clients("0000", 200)
	w := feedbackWorld(t, map[string][]string{"r1": all}, feedbackDDL(`, CHECK (client_id NOT LIKE '00000000-%')`))
	w.cfg.Sink.Pins = []pgsession.Setting{{Name: "lock_timeout", Value: "1s"}}
	theirs, err := w.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = theirs.Rollback(t.Context()) }()
	if _, err := theirs.Exec(t.Context(), `INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
  adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created)
SELECT 'r1', 'c1', '', '', '', 1, 2, 1, client, 1 FROM unnest($1::text[]) client WHERE client NOT LIKE '00000000-%'`, all); err != nil {
		t.Fatal(err)
	}
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	envtest.Until(t, patience, func() error {
		if lanes := svc.Status().Lanes; len(lanes) == 0 || lanes[0].Epoch < 3 {
			return fmt.Errorf("lanes: %+v", lanes)
		}
		return nil
	})
	if letters := w.deadLetters(); len(letters) > 0 {
		t.Errorf("dead letter while the lock is held: %s", letters[0].Value)
	}
	if err := theirs.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.expect(map[string][]string{"c1": all[1:]})
	envtest.Until(t, patience, func() error {
		letters := w.deadLetters()
		if len(letters) == 0 {
			return errors.New("no dead letter")
		}
		if named := namedClients(t, letters[0]); len(letters) > 1 || len(named) != 1 || named[0] != all[0] {
			t.Errorf("%d dead letters, the first of %v, want one of %s", len(letters), named, all[0])
		}
		return nil
	})
}

// A refused client of one campaign makes no other campaign of the same step guarded.
func TestRefusedClientGuardsNoOtherCampaign(t *testing.T) {
	t.Parallel()
	few, large := clients("0001", 5), clients("0000", 6000)
	w := feedbackWorld(t, map[string][]string{"r1": few, "r2": large}, feedbackDDL(`, CHECK (client_id NOT LIKE '00010003-%')`))
	s := w.owner()
	c1, c2 := w.campaign("c1", "r1"), w.campaign("c2", "r2")
	st, other := w.stepFor(&c1, few...), w.stepFor(&c2, large[:1900]...)
	st.picks = append(st.picks, other.picks...)
	st.rows[c2.Key()] = other.rows[c2.Key()]
	st.sealStep(st.trigger)
	if err := commitSteps(t, s, st); err != nil {
		t.Fatal(err)
	}
	if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = 'c2'`); n != 1900 {
		t.Errorf("the step has notified %d clients of the other campaign, want 1900", n)
	}
	if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = 'c1'`); n != 4 {
		t.Errorf("the step has notified %d clients of the campaign with the refused one, want 4", n)
	}
	if st.rows[c2.Key()].guarded.Load() || !st.rows[c1.Key()].guarded.Load() {
		t.Errorf("guarded: the campaign with the refused client %t, the other one %t", st.rows[c1.Key()].guarded.Load(), st.rows[c2.Key()].guarded.Load())
	}
}

// However far apart the refused clients of a campaign are, few of its ordinary steps are
// refused: see the invariant in guarded.go.
func TestRefusedOrdinarySteps(t *testing.T) {
	t.Parallel()
	const audience = 2_000_000
	ofSize := map[int]*id.List{2000: {}, maxGuarded: {}}
	for size, list := range ofSize {
		for range size {
			list.Append(packID(t, "a"))
		}
	}
	for _, apart := range []int{1, 400, 1500, 3000, 10_000, 50_000, 200_000, audience} {
		g, l := newGuardedCampaigns(), newLive("c1")
		refused, ordinary := 0, 0
		for at := 0; at < audience; {
			size := 2000
			if l.guarded.Load() {
				size = maxGuarded
			}
			k := &clientPick{live: l, clients: ofSize[size]}
			k.refuses = at/apart != (at+size)/apart
			if k.refuses && size > maxGuarded { // the step gives the campaign up
				refused++
				g.markGuarded(k)
				continue
			}
			g.noteStep(&step{picks: []*clientPick{k}})
			if at += size; size > maxGuarded {
				ordinary += size
			}
		}
		if most := (1 + ordinary/ordinaryPays) * (2 + bits.Len(audience/maxGuarded)); refused > most {
			t.Errorf("refused clients %d apart: %d ordinary steps are refused, want %d at most", apart, refused, most)
		}
		if least := audience * 9 / 10; apart >= 200_000 && ordinary < least {
			t.Errorf("refused clients %d apart: %d clients go by ordinary steps, want %d at least", apart, ordinary, least)
		}
		t.Logf("refused clients %d apart: %d ordinary steps are refused, %d %% of the clients go by ordinary steps", apart, refused, ordinary*100/audience)
	}
}

// A campaign whose end comes while its last clients are written is cut off, also where a
// step behind, with none of its clients, had brought it to its end.
func TestStepWithoutClientsOfACampaignThatHasEnded(t *testing.T) {
	t.Parallel()
	for _, state := range []string{sink.StatePending, sink.StateFinished} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			w := newDeployment(t, 1, map[string][]string{"r1": {"a", "b"}})
			s := w.owner()
			w.db.Exec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(4); RETURN NULL; END'`)
			w.db.Exec(`CREATE TRIGGER slow AFTER INSERT ON dinnerbell.campaign FOR EACH ROW EXECUTE FUNCTION slow()`)
			c := w.campaign("c1", "r1")
			c.End = time.Now().Unix() + 3
			before := w.stepFor(&c, "a", "b")
			r := before.rows[c.Key()]
			r.state, r.served, r.cursor = sink.StatePending, true, packID(t, "b")
			st := newStep(sink.ContractTable())
			r.liveCampaign.cursor = r.cursor
			st.noteProgress(r.liveCampaign, state) // everybody whom it looked at has the campaign
			st.sealStep(time.Now().Unix())
			if err := commitSteps(t, s, before, st); err != nil {
				t.Fatal(err)
			}
			w.wantCounts("c1", "r1", storedCounts{State: "finished", Audience: -1, Started: true, Finished: true, CutOff: true})
		})
	}
}

// A step that was built before the table refused a campaign as a whole, with the
// campaign's row and none of its clients, leaves the campaign refused.
func TestStepWithoutClientsOfARefusedCampaign(t *testing.T) {
	t.Parallel()
	for _, state := range []string{sink.StatePending, sink.StateFinished} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			before, l := newStep(&sink.FeedbackTable{}), newLive("c1")
			before.noteProgress(l, sink.StatePending)
			before.picks = []*clientPick{{live: l, clients: &id.List{}}}
			st := newStep(&sink.FeedbackTable{})
			st.noteProgress(l, state) // everybody whom it looked at has the campaign
			st.sealStep(1)
			before.noteRefused(before.picks[0], "the table is against it")
			l.refused.Store(true) // before is committed
			st.resealIfChanged(time.Unix(1, 0))
			if r := st.rows[l.Key()]; r.state != sink.StateFinished || r.refusal == "" || r.cutOff {
				t.Errorf("the next step sets the row to state %q, refusal %q, cut off %t", r.state, r.refusal, r.cutOff)
			}
		})
	}
}
