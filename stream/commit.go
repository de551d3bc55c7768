package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

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
		conflict := isUniqueViolation(err) && !st.allContested()
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

// allContested tells whether nothing of the step goes by COPY.
func (st *step) allContested() bool {
	return !slices.ContainsFunc(st.picks, func(k *pick) bool { return !k.contested })
}

// try runs the step's transaction. On error it is not committed, or not known
// to be; then the session must end.
func (s *session) try(ctx context.Context, seq int64, st *step) (*payload, error) {
	p := st.payload()
	p.seq = seq
	if err := s.writeRows(ctx, st, p); err != nil {
		return nil, fmt.Errorf("write feedback rows of step %d: %w", seq, err)
	}
	failpoint.Hit("commit/rows-written")
	if err := s.writeStep(ctx, st, p); err != nil {
		return nil, fmt.Errorf("write step %d: %w", seq, err)
	}
	failpoint.Hit("commit/step-written")
	if time.Now().Unix() >= st.earliest {
		return nil, fmt.Errorf("commit step %d: %w", seq, errEnded)
	}
	tag, err := s.conn.Exec(ctx, "commit")
	if err != nil {
		return nil, fmt.Errorf("commit step %d: outcome unknown: %w", seq, err)
	}
	if tag.String() != "COMMIT" {
		return nil, fmt.Errorf("commit step %d: Postgres answered %s", seq, tag)
	}
	return p, nil
}

// writeRows begins the transaction and writes the feedback rows. begin travels
// with the COPY, which saves a round trip.
func (s *session) writeRows(ctx context.Context, st *step, p *payload) error {
	if len(st.copyData) > 0 {
		sql := "begin; COPY " + s.t.feedback + " (" + copyColumns + ") FROM STDIN (FORMAT binary)"
		if _, err := s.conn.PgConn().CopyFrom(ctx, bytes.NewReader(st.copyData), sql); err != nil {
			return err
		}
	} else if _, err := s.conn.Exec(ctx, "begin"); err != nil {
		return err
	}
	if len(st.copyData) > 0 && !st.contested() {
		return nil
	}
	return s.insertContested(ctx, st, p)
}

// contested tells whether some of the step's clients go by ON CONFLICT.
func (st *step) contested() bool {
	for _, k := range st.picks {
		if k.contested {
			return true
		}
	}
	return false
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

// writeStep changes everything but the feedback rows, in one round trip, and
// checks that each compare-and-swap has hit.
func (s *session) writeStep(ctx context.Context, st *step, p *payload) error {
	b := &pgx.Batch{}
	expect := func(want int64, otherwise error) func(pgconn.CommandTag) error {
		return func(tag pgconn.CommandTag) error {
			if tag.RowsAffected() != want {
				return fmt.Errorf("%s of %d rows instead of %d: %w", tag, tag.RowsAffected(), want, otherwise)
			}
			return nil
		}
	}
	s.queueLane(b, st, p).Exec(expect(1, errTakenOver))
	rows := newRowSets(st)
	if rows.inserts.len() > 0 {
		rows.inserts.queueInsert(b, s.t).Exec(expect(rows.inserts.len(), errStale))
	}
	if rows.edits.len() > 0 {
		rows.edits.queueEdit(b, s.t).Exec(expect(rows.edits.len(), errStale))
	}
	if rows.repeats.len() > 0 {
		rows.repeats.queueRepeat(b, s.t).Exec(expect(rows.repeats.len(), errStale))
	}
	if rows.moves.len() > 0 {
		rows.moves.queueMove(b, s.t).Exec(expect(rows.moves.len(), errStale))
	}
	b.Queue(`INSERT INTO `+s.t.outbox+` (lane, seq, notifications, payload) VALUES ($1, $2, $3, $4)`,
		s.lane.id, p.seq, p.notifications(), p.encode())
	b.Queue(`DELETE FROM `+s.t.outbox+` WHERE lane = $1 AND seq <= $2`, s.lane.id, s.shipped.Load())
	return s.conn.SendBatch(ctx, b).Close()
}

func (s *session) queueLane(b *pgx.Batch, st *step, p *payload) *pgx.QueuedQuery {
	return b.Queue(`UPDATE `+s.t.lane+` SET seq = $3 + 1, next_offset = greatest(next_offset, $4), notified = notified + $5, expired = expired + $6, dead = dead + $7,
  shipped = $8, notifications_ends = $9
WHERE lane = $1 AND epoch = $2 AND seq = $3`,
		s.lane.id, s.epoch, p.seq-1, st.nextOffset, p.notifications(), st.expired, len(st.dead), s.shipped.Load(), s.ends.list())
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

func isUniqueViolation(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "23505"
}
