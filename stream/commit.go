package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/failpoint"
	"dinnerbell/state"
)

// commitAll makes steps durable, in order, each in one transaction, and hands
// what they decided to the shipper. It owns the session's sink connection.
func (s *session) commitAll(ctx context.Context) error {
	for seq := s.seq + 1; ; seq++ {
		if err := s.windowOpen(ctx, seq); err != nil {
			return err
		}
		select {
		case st, ok := <-s.steps:
			if !ok {
				return nil
			}
			p, err := s.commit(ctx, seq, st)
			if err != nil {
				return err
			}
			if err := s.committed(ctx, st, p); err != nil {
				return err
			}
			s.recycle(st)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// recycle gives the step's buffer back, unless it has grown for something rare.
func (s *session) recycle(st *step) {
	if cap(st.copyData) > 2*s.cfg.StepBytes {
		return
	}
	select {
	case s.buffers <- st.copyData:
	default:
	}
}

// commit decides one step. The fast path is COPY. Where a client was notified
// before and nobody here knew, the unique index refuses the COPY, and the step
// is done again by INSERT … ON CONFLICT DO NOTHING, of which only what was
// returned goes into the outbox. Where a campaign's end has come meanwhile, the
// step is decided anew without it.
func (s *session) commit(ctx context.Context, seq int64, st *step) (*payload, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SinkTimeout)
	defer cancel()
	for {
		p, err := s.try(ctx, seq, st)
		conflict := errors.Is(err, errNotified)
		if err == nil || !conflict && !errors.Is(err, errEnded) {
			return p, err
		}
		if _, err := s.conn.Exec(ctx, "rollback"); err != nil {
			return nil, fmt.Errorf("roll back step %d: %w", seq, err)
		}
		failpoint.Hit("commit/rolled-back")
		if conflict {
			s.lane.conflicts.Add(1)
			for _, k := range st.picks {
				k.live.contested.Store(true)
			}
		}
		st.seal(time.Now().Unix())
	}
}

// try runs the step's transaction, which has two halves: the feedback rows, then
// everything else and the commit. They travel together, in one round trip,
// unless something must be known in between. On error it is not committed, or
// not known to be; then, but for what commit tries again, the session must end.
func (s *session) try(ctx context.Context, seq int64, st *step) (_ *payload, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("commit step %d: %w", seq, err)
		}
	}()
	p := st.payload()
	p.seq = seq
	f := newFlight(ctx, s.conn)
	defer f.end()
	f.addCommand(s.sql.begin, "BEGIN")
	if len(st.copyData) > 0 {
		f.copy(s.sql.copy, st.copyData)
	}
	apart := s.apart(st)
	if apart {
		if err := s.settleRows(ctx, f, st, p); err != nil {
			return nil, err
		}
	}
	s.addStep(f, st, p)
	if apart {
		if err := f.trip(); err != nil {
			return nil, err
		}
		failpoint.Hit("commit/step-written")
		if time.Now().Unix() >= st.earliest {
			return nil, errEnded
		}
	}
	f.addCommand(s.sql.commit, "COMMIT")
	f.depart()
	failpoint.Hit("commit/sent")
	if err := f.arrive(); err != nil {
		return nil, err
	}
	return p, nil
}

// apart tells whether the halves of the step's transaction must travel apart:
// because what ON CONFLICT leaves out is not shipped, or because a campaign's
// end may come before the commit does, so the clock is read once more before it
// is sent.
func (s *session) apart(st *step) bool {
	return st.contested() || time.Now().Add(s.cfg.SinkTimeout).Unix() >= st.earliest
}

// settleRows ends the first half: it waits for the COPY and writes what goes by
// ON CONFLICT.
func (s *session) settleRows(ctx context.Context, f *flight, st *step, p *payload) error {
	if err := f.trip(); err != nil {
		return err
	}
	if st.contested() {
		f.end() // pgx sets time limits of its own
		if err := s.insertContested(ctx, st, p); err != nil {
			return err
		}
		f.begin()
	}
	failpoint.Hit("commit/rows-written")
	return nil
}

// contested tells whether some of the step's clients go by ON CONFLICT.
func (st *step) contested() bool {
	return slices.ContainsFunc(st.picks, func(k *pick) bool { return k.contested })
}

// insertContested writes the clients that COPY did not, and leaves in p only
// those that were new.
func (s *session) insertContested(ctx context.Context, st *step, p *payload) error {
	p.segments = p.segments[:0]
	for _, k := range st.picks {
		clients := k.clients
		if k.contested {
			var err error
			if clients, err = s.insert(ctx, k, st.trigger); err != nil {
				return err
			}
		}
		if clients.Len() > 0 {
			p.segments = append(p.segments, segment{campaign: k.live.Campaign, trigger: st.trigger, clients: clients, wire: k.wire})
		}
	}
	return nil
}

// insert writes one pick's rows where there is none yet, and returns the
// clients of those that were written.
func (s *session) insert(ctx context.Context, k *pick, trigger int64) (*state.IDList, error) {
	texts := make([]string, k.clients.Len())
	for i := range texts {
		texts[i] = k.clients.At(i).Text()
	}
	c := k.live.Campaign
	rows, err := s.conn.Query(ctx, `INSERT INTO `+s.t.feedback+` (`+copyColumns+`)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, c FROM unnest($10::text[]) AS c
ON CONFLICT (adv_campaign_id, client_id) DO NOTHING RETURNING client_id`,
		c.RestaurantID, c.ID, c.Content, c.Owner, c.OwnerContact, c.Start, c.End, c.Created, trigger, texts)
	if err != nil {
		return nil, err
	}
	written := &state.IDList{}
	var text string
	_, err = pgx.ForEachRow(rows, []any{&text}, func() error {
		id, err := state.PackID(text)
		if err == nil {
			written.Append(id)
		}
		return err
	})
	s.lane.known.Add(int64(k.clients.Len() - written.Len()))
	return written, err
}

// addStep puts on board what changes everything but the feedback rows. Each
// compare-and-swap fails the transaction if it misses.
func (s *session) addStep(f *flight, st *step, p *payload) {
	f.add(s.sql.lane, s.lane.id, s.epoch, p.seq-1, st.nextOffset, p.notifications(), st.expired, len(st.dead), s.shipped.Load(), s.ends.list())
	rows := newRowSets(st)
	if rows.inserts.len() > 0 {
		f.add(s.sql.insert, rows.inserts.args()...)
	}
	if rows.edits.len() > 0 {
		f.add(s.sql.edit, rows.edits.editArgs()...)
	}
	if rows.repeats.len() > 0 {
		f.add(s.sql.repeat, rows.repeats.repeatArgs()...)
	}
	if rows.moves.len() > 0 {
		f.add(s.sql.move, rows.moves.moveArgs()...)
	}
	f.add(s.sql.outbox, s.lane.id, p.seq, p.notifications(), p.encode())
	f.add(s.sql.clean, s.lane.id, s.shipped.Load())
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

// committed does what may only follow the commit.
func (s *session) committed(ctx context.Context, st *step, p *payload) error {
	failpoint.Hit("commit/committed")
	s.agenda.remove(st.withdrawn())
	s.agenda.add(time.Now(), st.appointments()...)
	s.lane.noteDecided(st, p)
	select {
	case s.decided <- p:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
