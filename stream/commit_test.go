package stream

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"dinnerbell/state"
)

// commitSteps has a session that does not run commit steps that wait already.
func commitSteps(t *testing.T, s *session, steps ...*step) error {
	t.Helper()
	s.steps, s.departed = make(chan *step, len(steps)), make(chan *departure, len(steps))
	for _, st := range steps {
		s.steps <- st
	}
	close(s.steps)
	return s.commitAll(t.Context())
}

// owner is a session that has taken the only lane over and does not run.
func (w *world) owner() *session {
	w.Helper()
	s, err := (&lane{svc: New(w.cfg, w.store, w.barrier)}).takeover(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(s.close)
	return s
}

// stepFor notifies clients of a campaign.
func (w *world) stepFor(c *Campaign, clients ...string) *step {
	w.Helper()
	p := &pick{live: &live{Campaign: c}, clients: &state.IDList{}}
	for _, client := range clients {
		p.clients.Append(packID(w, client))
	}
	st := newStep()
	st.picks = []*pick{p}
	st.rows[c.key()] = &row{live: p.live, accept: true, state: stateFinished}
	st.seal(time.Now().Unix())
	return st
}

// Steps travel back to back. One whose COPY is refused is done again without
// those who have the campaign, the ones behind it after it, in their order.
func TestStepBehindARefusedOneIsDoneAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, map[string][]string{"r1": {"a"}})
	s := w.owner()
	w.db.Exec(`INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
  adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created)
SELECT 'r1', id, '', '', '', 1, 2, 1, client, 1 FROM (VALUES ('c2', 'b'), ('c3', 'a')) AS v(id, client)`)
	var steps []*step
	for i := range 5 {
		c := w.campaign(fmt.Sprint("c", i), "r1")
		steps = append(steps, w.stepFor(&c, "a", "b", "c"))
	}
	if err := commitSteps(t, s, steps...); err != nil {
		t.Fatal(err)
	}
	var shipped []string
	for range steps {
		d := <-s.departed
		p := d.p
		if !d.committed() {
			t.Errorf("step %d is not committed", d.seq)
		}
		for _, seg := range p.segments {
			for i := range seg.clients.Len() {
				shipped = append(shipped, fmt.Sprint(p.seq, seg.campaign.ID, seg.clients.At(i).Text()))
			}
		}
	}
	want := "1c0a 1c0b 1c0c 2c1a 2c1b 2c1c 3c2a 3c2c 4c3b 4c3c 5c4a 5c4b 5c4c"
	if got := strings.Join(shipped, " "); got != want {
		t.Errorf("shipped %s\nwant    %s", got, want)
	}
	if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback`); n != 15 {
		t.Errorf("%d rows, want 15", n)
	}
	if n := s.lane.conflicts.Load(); n != 2 {
		t.Errorf("%d conflicts, want 2", n)
	}
	if n := w.db.Int(`SELECT seq FROM dinnerbell.lane`); n != 5 {
		t.Errorf("the lane is at step %d, want 5", n)
	}
}

// A step that is refused for good takes those behind it along.
func TestNothingCommitsBehindAStepThatFailed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, map[string][]string{"r1": {"a"}})
	s := w.owner()
	c, d := w.campaign("c", "r1"), w.campaign("d", "r1")
	known := w.stepFor(&c, "a")
	if err := commitSteps(t, s, known); err != nil {
		t.Fatal(err)
	}
	s.seq++
	again := w.stepFor(&c, "b") // accepts what the campaign table has, as if nobody had looked
	if err := commitSteps(t, s, again, w.stepFor(&d, "a"), w.stepFor(&d, "b")); !errors.Is(err, errStale) {
		t.Errorf("commit ended with %v, want %v", err, errStale)
	}
	if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback`); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
	if n := w.db.Int(`SELECT seq FROM dinnerbell.lane`); n != 1 {
		t.Errorf("the lane is at step %d, want 1", n)
	}
}
