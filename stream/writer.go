package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// writer is one of the session's two sink connections that carry steps.
type writer struct {
	conn *pgx.Conn
	sql  *stepStatements // prepared on conn
}

// openWriter makes the connection and marks it as one of the lane's, so that a
// later owner can end it.
func (s *session) openWriter(ctx context.Context, name string) (_ *writer, err error) {
	w := &writer{sql: newStepStatements(s.t)}
	if w.conn, err = s.cfg.Sink.connect(ctx, name); err != nil {
		return nil, err
	}
	if err = s.readyWriter(ctx, w); err != nil {
		closeConn(w.conn)
		return nil, err
	}
	return w, nil
}

func (s *session) readyWriter(ctx context.Context, w *writer) error {
	if _, err := w.conn.Exec(ctx, laneSettings, pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("set up sink session: %w", err)
	}
	if _, err := w.conn.Exec(ctx, `SELECT pg_advisory_lock_shared(hashtext($1), $2)`, s.t.lane, s.lane.id); err != nil {
		return fmt.Errorf("mark sink session as lane %d's: %w", s.lane.id, err)
	}
	return nil
}

// endPredecessors ends the connections of the lane's former owners. One whose
// daemon is frozen between a step's rows and its commit keeps the rows' keys
// locked, and no timeout of the server's ends it: it is in the middle of a
// pipeline, not idle. What it had sent a commit for, is committed or not; the
// epoch is raised after it.
//
// A connection that is younger than ours is left alone: it is of an owner that
// takes the lane over from us.
func (s *session) endPredecessors(ctx context.Context) error {
	var ended int
	err := s.writers[0].conn.QueryRow(ctx, `
SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid)) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.classid = hashtext($1)::oid AND l.objid = $2::int4::oid AND l.objsubid = 2
  AND a.datname = current_database() AND a.usename = current_user
  AND a.backend_start < (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())`, s.t.lane, s.lane.id).Scan(&ended)
	if err != nil {
		return fmt.Errorf("end the former owner's connections of lane %d: %w", s.lane.id, err)
	}
	if ended > 0 {
		s.cfg.Logger.Info("ended connections of the lane's former owner", "lane", s.lane.id, "connections", ended)
	}
	return nil
}

// decision is one step on its way through its transaction.
type decision struct {
	seq int64
	st  *step
	// before is closed when the step before is committed and handed on: only
	// then may this one move the lane.
	before <-chan struct{}
	done   chan struct{}
	// ahead: its rows may travel before that.
	ahead bool
	// campaigns are the restaurants of the step's campaigns, by campaign id.
	campaigns map[string]string
	contested bool
}

// firstDecision is what the session's first step follows.
func firstDecision() *decision {
	d := &decision{done: make(chan struct{})}
	close(d.done)
	return d
}

// followedBy puts a step behind d.
//
// Its rows may go ahead if the two cannot meet in the unique index: a row that
// waits for the other transaction there, while that one waits for its turn here,
// would wait for ever, and Postgres would see no deadlock. Within one campaign
// of one restaurant the cursor keeps them apart. A campaign id that runs for two
// restaurants may have a client twice. Rows of another lane may be in the way all
// the same: see awaitAhead.
func (d *decision) followedBy(seq int64, st *step) *decision {
	next := &decision{seq: seq, st: st, before: d.done, done: make(chan struct{}),
		campaigns: make(map[string]string, len(st.picks)), contested: st.contested()}
	next.ahead = !d.contested && !next.contested
	for _, p := range st.picks {
		c := p.live.Campaign
		if restaurant, both := d.campaigns[c.ID]; both && restaurant != c.RestaurantID {
			next.ahead = false
		}
		next.campaigns[c.ID] = c.RestaurantID
	}
	return next
}

// turn tells whether the step before is committed.
func (d *decision) turn() bool {
	select {
	case <-d.before:
		return true
	default:
		return false
	}
}

// await waits for the turn.
func (d *decision) await(ctx context.Context) error {
	select {
	case <-d.before:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for step %d: %w", d.seq-1, ctx.Err())
	}
}

// aheadPatience is how long rows that went ahead stay without their turn. A step
// takes a few milliseconds.
const aheadPatience = time.Second

// awaitAhead waits for the turn with rows on their way, which f has sent. The
// step before may be waiting for a row of another lane's step that went ahead,
// whose step before waits for ours: each lane waits on our side, so Postgres sees
// no deadlock. So who has waited too long must let its rows go: that is errHeldUp,
// and then the step does not go ahead any more. Of transactions that wait for each
// other, one does not wait for a lock, and either moves on or is such a one.
func (d *decision) awaitAhead(ctx context.Context, f *flight) error {
	patience := time.NewTimer(aheadPatience)
	defer patience.Stop()
	select {
	case <-patience.C:
	case <-d.before:
		return nil
	case <-ctx.Done():
		return d.await(ctx)
	}
	d.ahead = false
	if err := f.trip(); err != nil {
		return err
	}
	return errHeldUp
}

// stepStatements are what a step's transaction is made of.
type stepStatements struct {
	begin, copy, lane, insert, edit, repeat, move, outbox, clean, commit *statement
}

func newStepStatements(t tables) *stepStatements {
	return &stepStatements{
		begin: &statement{name: "begin", sql: `BEGIN`},
		copy: &statement{name: "copy feedback rows", sql: `COPY ` + t.feedback + ` (` + copyColumns + `) FROM STDIN (FORMAT binary)`,
			stands: map[string]error{uniqueViolation: errNotified}},
		lane: &statement{name: "move lane", stands: missed(errTakenOver), sql: expecting("1", `UPDATE `+t.lane+` SET seq = $3 + 1, next_offset = greatest(next_offset, $4), notified = notified + $5, expired = expired + $6, dead = dead + $7,
  shipped = $8, notifications_ends = $9
WHERE lane = $1 AND epoch = $2 AND seq = $3`)},
		insert: &statement{name: "insert campaigns", stands: missed(errStale), sql: insertRowsSQL(t)},
		edit:   &statement{name: "edit campaigns", stands: missed(errStale), sql: editRowsSQL(t)},
		repeat: &statement{name: "repeat campaigns", stands: missed(errStale), sql: repeatRowsSQL(t)},
		move:   &statement{name: "move campaigns", stands: missed(errStale), sql: moveRowsSQL(t)},
		outbox: &statement{name: "write outbox", sql: `INSERT INTO ` + t.outbox + ` (lane, seq, notifications, payload) VALUES ($1, $2, $3, $4)`},
		clean:  &statement{name: "clean outbox", sql: `DELETE FROM ` + t.outbox + ` WHERE lane = $1 AND seq <= $2`},
		commit: &statement{name: "commit", sql: `COMMIT`},
	}
}

func (q *stepStatements) all() []*statement {
	return []*statement{q.begin, q.copy, q.lane, q.insert, q.edit, q.repeat, q.move, q.outbox, q.clean, q.commit}
}
