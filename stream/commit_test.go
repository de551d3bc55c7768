package stream

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// commitSteps has a session that does not run commit steps that wait already.
func commitSteps(t *testing.T, s *session, steps ...*step) error {
	t.Helper()
	s.steps, s.toShip = make(chan *step, len(steps)), make(chan *inflightStep, len(steps))
	for _, st := range steps {
		s.steps <- st
	}
	close(s.steps)
	return s.newCommitter().run(t.Context())
}

// owner is a session that has taken the only lane over and does not run.
func (w *deployment) owner() *session {
	w.Helper()
	s, err := (&lane{svc: New(w.cfg, w.store, w.barrier)}).takeOver(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(s.close)
	return s
}

// stepFor notifies clients of a campaign.
func (w *deployment) stepFor(c *campaign.Campaign, clients ...string) *step {
	w.Helper()
	p := &clientPick{live: &liveCampaign{Campaign: c}, clients: &id.List{}}
	for _, client := range clients {
		p.clients.Append(packID(w, client))
	}
	st := newStep(sink.ContractTable())
	st.picks = []*clientPick{p}
	p.live.version = 1
	st.rows[c.Key()] = &campaignRow{liveCampaign: p.live, accept: true, state: sink.StateFinished}
	st.sealStep(time.Now().Unix())
	return st
}

// Steps travel back to back. One whose COPY is refused is done again without
// those who have the campaign, the ones behind it after it, in their order.
func TestStepBehindARefusedOneIsDoneAgain(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
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
		d := <-s.toShip
		p := d.p
		if !d.isCommitted() {
			t.Errorf("step %d is not committed", d.seq)
		}
		for _, seg := range p.Segments {
			for i := range seg.Clients.Len() {
				shipped = append(shipped, fmt.Sprint(p.Seq, seg.Campaign.ID, seg.Clients.At(i).Text()))
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
	if n := s.lane.svc.counters.conflicts.Load(); n != 2 {
		t.Errorf("%d conflicts, want 2", n)
	}
	if n := w.db.Int(`SELECT seq FROM dinnerbell.lane`); n != 5 {
		t.Errorf("the lane is at step %d, want 5", n)
	}
}

// A row that is there refuses the COPY of a campaign twice: the second time in a
// step that was sealed before the first one, or beside a campaign that goes by ON
// CONFLICT already. The step is done again; no refusal by the table is looked for.
func TestConflictInAStepSealedBeforeAnother(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	s := w.owner()
	for _, client := range []string{"a", "c", "d"} {
		w.db.Exec(aRow, client)
	}
	c, other := w.campaign("c", "r1"), w.campaign("other", "r1")
	first := w.stepFor(&c, "a", "b")
	l := first.picks[0].live
	later := func(st *step, clients ...string) *step {
		p := &clientPick{live: l, clients: &id.List{}}
		for _, client := range clients {
			p.clients.Append(packID(w, client))
		}
		st.picks = append(st.picks, p)
		st.noteProgress(l, sink.StateFinished)
		st.sealStep(time.Now().Unix())
		return st
	}
	mixed := w.stepFor(&other, "a")
	mixed.picks[0].live.contested.Store(true)
	if err := commitSteps(t, s, first, w.stepFor(new(w.campaign("small", "r1")), "a"), later(newStep(sink.ContractTable()), "c", "e"), later(mixed, "d", "f")); err != nil {
		t.Fatal(err)
	}
	if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback`); n != 3+5 {
		t.Errorf("%d rows, want 8", n)
	}
	if l.guarded.Load() || mixed.suspect || mixed.picks[0].live.guarded.Load() {
		t.Error("a row that is there was taken for a refusal by the table")
	}
}

// A step that accepts what another lane has accepted meanwhile is judged anew:
// the campaign is left to the newer message, the rest of the step and the steps
// behind it are committed.
func TestStaleStepIsJudgedAnew(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	s := w.owner()
	c, d := w.campaign("c", "r1"), w.campaign("d", "r1")
	w.db.Exec(`INSERT INTO dinnerbell.campaign SELECT 'c', 'r1', 1, 1, 1, 7, 99, '', '', '', '', 1, 2, 1, 'finished', '', false`)
	first := w.stepFor(&c, "b") // as if nobody had looked
	first.nextOffset = 5
	behind := w.stepFor(&c, "a")
	behind.picks[0].live = first.picks[0].live
	behind.rows = map[campaign.Key]*campaignRow{c.Key(): {liveCampaign: first.picks[0].live, served: true, state: sink.StatePending}}
	more := w.stepFor(&d, "b")
	more.rows[d.Key()].accept = false
	if err := commitSteps(t, s, first, w.stepFor(&d, "a"), behind, more); err != nil {
		t.Fatal(err)
	}
	if got := w.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = 'd'`) - 10*w.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = 'c'`); got != 2 {
		t.Errorf("%d: want two rows of the other campaign, none of the one that another lane has", got)
	}
	if n := w.db.Int(`SELECT seq * 1000 + next_offset FROM dinnerbell.lane`); n != 4005 {
		t.Errorf("seq and next offset are %d, want 4 and 5", n)
	}
	if n := w.db.Int(`SELECT msg_offset FROM dinnerbell.campaign WHERE adv_campaign_id = 'c'`); n != 7 {
		t.Errorf("the campaign is that of offset %d, want 7", n)
	}
	if n := s.lane.svc.Status().Older; n != 1 {
		t.Errorf("%d older messages are counted, want 1", n)
	}
}

// blockRows has a transaction hold what steps need, until release.
func (w *deployment) blockRows(sql string) (release func()) {
	w.Helper()
	tx, err := w.db.Pool.Begin(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = tx.Rollback(context.Background()) }) // released already
	if _, err := tx.Exec(w.Context(), sql); err != nil {
		w.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(w.Context()); err != nil {
			w.Error(err)
		}
	}
}

// A step is in the server's hands as a whole, its COMMIT too. One that a lock held
// up, until after nobody waited for it any more and its campaign had ended, is not
// committed then.
func TestServerDoesNotCommitAfterTheEnd(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	w.cfg.SinkTimeout = time.Second
	s := w.owner()
	c := w.campaign("c", "r1")
	if err := commitSteps(t, s, w.stepFor(&c, "b")); err != nil {
		t.Fatal(err)
	}
	s.claim.Decided++
	c.End = time.Now().Unix() + 3
	st := w.stepFor(&c, "a")
	st.rows[c.Key()].accept = false // it goes on
	release := w.blockRows(`LOCK TABLE subscribers_feedback IN SHARE MODE`)
	if err := commitSteps(t, s, st); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("commit ended with %v; the test needs one that was given up", err)
	}
	var held bool
	backend := `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)`
	if err := w.db.Pool.QueryRow(t.Context(), backend, s.claim.Conn.PgConn().PID()).Scan(&held); err != nil || !held {
		t.Fatalf("the server has given the step up as well (%v)", err)
	}
	envtest.Until(t, patience, func() error {
		if left := time.Until(time.Unix(c.End, 0)); left > 0 {
			return fmt.Errorf("%s to the end", left)
		}
		return nil
	})
	release()
	envtest.Until(t, patience, func() error {
		err := w.db.Pool.QueryRow(t.Context(), backend, s.claim.Conn.PgConn().PID()).Scan(&held)
		if err == nil && held {
			err = errors.New("the server is still at it")
		}
		return err
	})
	if rows, seq := w.db.Int(`SELECT count(*) FROM subscribers_feedback`), w.db.Int(`SELECT seq FROM dinnerbell.lane`); rows != 1 || seq != 1 {
		t.Errorf("%d rows, step %d after the end; want what was there before, 1 and 1", rows, seq)
	}
}

// A step counts as committed while the one behind it cannot even be written: its
// records do not wait for that one.
func TestCommittedStepDoesNotWaitForTheNext(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	var dir, port string
	if err := w.db.Pool.QueryRow(t.Context(), `SELECT split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port')`).Scan(&dir, &port); err != nil {
		t.Fatal(err)
	}
	if dir == "" {
		t.Skip("the server has no Unix socket, whose buffers are small")
	}
	u, err := url.Parse(w.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Host, u.RawQuery = "", url.Values{"host": {dir}, "port": {port}}.Encode()
	w.cfg.Sink.URL = func() (string, error) { return u.String(), nil }
	s := w.owner()
	small, large := w.campaign("small", "r1"), w.campaign("large", "r1")
	large.Content = strings.Repeat("c", 2000)
	many := clients("0000", 4000) // 8 MiB
	first, second := w.stepFor(&small, "a"), w.stepFor(&large, many...)
	release := w.blockRows(`INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
  adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created)
VALUES ('r1', 'large', '', '', '', 1, 2, 1, '` + many[0] + `', 1)`)
	s.steps, s.toShip = make(chan *step, 2), make(chan *inflightStep, 2)
	s.steps <- first
	s.steps <- second
	close(s.steps)
	ended := make(chan error, 1)
	go func() { ended <- s.newCommitter().run(t.Context()) }()
	d := <-s.toShip
	select {
	case <-d.done:
	case <-time.After(patience / 2):
		t.Error("the first step is not known as committed while the second one is held up")
	}
	release()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback`); n != 4001 {
		t.Errorf("%d rows, want 4001", n)
	}
}

// Postgres' clock refuses a step whose campaign ends: it is decided anew without
// that campaign, the one behind it after it.
func TestStepIsDecidedAnewAtTheEnd(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	s := w.owner()
	s.claim.ClockAhead = 2 * time.Second // so that Postgres refuses before the end is there
	ending, other := w.campaign("ending", "r1"), w.campaign("other", "r1")
	ending.End = time.Now().Unix() + 1
	if err := commitSteps(t, s, w.stepFor(&ending, "a"), w.stepFor(&other, "a")); err != nil {
		t.Fatal(err)
	}
	if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = 'other'`); n != 1 {
		t.Errorf("%d rows of the campaign that goes on, want 1", n)
	}
	if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback`); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
	if n := w.db.Int(`SELECT seq FROM dinnerbell.lane`); n != 2 {
		t.Errorf("the lane is at step %d, want 2", n)
	}
}

// A clock that was set since the takeover ends the session: the next one compares
// them again. It must not try the step for ever.
func TestClockThatWasSetEndsTheSession(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	s := w.owner()
	s.claim.ClockAhead = 2 * time.Hour
	c := w.campaign("c", "r1") // ends in an hour
	if err := commitSteps(t, s, w.stepFor(&c, "a")); !errors.Is(err, sink.ErrCampaignEnded) {
		t.Errorf("commit ended with %v, want %v", err, sink.ErrCampaignEnded)
	}
	if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback`); n != 0 {
		t.Errorf("%d rows, want none", n)
	}
}

// The look-ups of a lane are planned by keys, also where the table was small when it
// was last analyzed.
func TestLookUpIsPlannedByKeys(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	s := w.owner()
	w.db.Exec(`INSERT INTO dinnerbell.campaign SELECT 'c' || i, 'r', 0, 1, 0, i, 0, '', '', '', '', 1, 2, 1, 'finished', '', false FROM generate_series(1, 4) i`)
	w.db.Exec(aRow, "x")
	w.db.Exec(`ANALYZE dinnerbell.campaign, subscribers_feedback`)
	for name, c := range map[string]struct{ sql, types, args, index string }{
		"ids": {s.claim.Tables.ExistingIDsSQL(), "text[]", `'{a,b}'`, "campaign_pkey"}, "keys": {s.claim.Tables.AcceptedSQL(), "text[], text[]", `'{a,b}', '{r,r}'`, "campaign_pkey"},
		"due":         {s.claim.Tables.DueSQL(), "text[],text[],int8[],int4", `'{a,b}', '{r,r}', '{1,1}', 0`, "campaign_pkey"},
		"pendingkeys": {s.claim.Tables.PendingKeysSQL(), "text[],text[],int4", `'{a,b}', '{r,r}', 0`, "campaign_pkey"},
		"clients":     {s.claim.Feedback.MissingSQL(""), "text, text[]", `'a', '{a,b}'`, "subscribers_feedback_adv_campaign_id_client_id_idx"},
	} {
		if _, err := s.reader.Exec(t.Context(), `PREPARE `+name+`(`+c.types+`) AS `+c.sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
		rows, err := s.reader.Query(t.Context(), `EXPLAIN EXECUTE `+name+`(`+c.args+`)`, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		plan := strings.Join(lines, "\n")
		if name == "clients" && !strings.Contains(plan, "AND (client_id = ") {
			t.Errorf("the clients of a campaign are looked up by\n%s", plan)
		}
		if scans := strings.Count(plan, "using "+c.index); scans == 0 || scans != strings.Count(plan, "Index Cond: ((adv_campaign_id = ")+strings.Count(plan, "Index Cond: (adv_campaign_id = ") {
			t.Errorf("the look-up of %s is planned as\n%s", name, plan)
		}
	}
}
