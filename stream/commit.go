package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"dinnerbell/internal/failpoint"
	"dinnerbell/state"
)

// commitAll makes steps durable, in order, each in one transaction, and hands
// what they decided to the shipper. Two steps are under way at a time, on a
// connection each: the rows of one travel while the one before it commits.
func (s *session) commitAll(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	free := make(chan *writer, len(s.writers))
	for _, w := range s.writers {
		free <- w
	}
	last := firstDecision()
	for seq := s.seq + 1; ; seq++ {
		d, w, err := s.next(ctx, seq, last, free)
		if err != nil || d == nil {
			return cmp.Or(g.Wait(), err) // a context that ended did so with the first failure, which counts
		}
		g.Go(func() error {
			if err := s.decide(ctx, w, d); err != nil {
				return err
			}
			free <- w
			return nil
		})
		last = d
	}
}

// next waits for a place in the window, a connection and a step. It returns
// none when there are no more steps.
func (s *session) next(ctx context.Context, seq int64, last *decision, free <-chan *writer) (*decision, *writer, error) {
	if err := s.windowOpen(ctx, seq); err != nil {
		return nil, nil, err
	}
	select {
	case w := <-free:
		select {
		case st, ok := <-s.steps: // not earlier: it is sealed anew until it is taken
			if ok {
				return last.followedBy(seq, st), w, nil
			}
			return nil, nil, nil
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

// decide commits one step and lets the next one have its turn.
func (s *session) decide(ctx context.Context, w *writer, d *decision) error {
	p, err := s.commit(ctx, w, d)
	if err != nil {
		return err
	}
	if err := s.committed(ctx, d.st, p); err != nil {
		return err
	}
	s.recycle(d.st)
	close(d.done)
	return nil
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
// step is decided anew without it. Where rows that went ahead have waited too long,
// they go back and wait for their turn.
func (s *session) commit(ctx context.Context, w *writer, d *decision) (*payload, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SinkTimeout)
	defer cancel()
	st := d.st
	for {
		p, err := s.try(ctx, w, d)
		conflict := errors.Is(err, errNotified)
		if err == nil || !conflict && !errors.Is(err, errEnded) && !errors.Is(err, errHeldUp) {
			return p, err
		}
		if _, err := w.conn.Exec(ctx, "rollback"); err != nil {
			return nil, fmt.Errorf("roll back step %d: %w", d.seq, err)
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
func (s *session) try(ctx context.Context, w *writer, d *decision) (_ *payload, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("commit step %d: %w", d.seq, err)
		}
	}()
	st := d.st
	p := st.payload()
	p.seq = d.seq
	f := newFlight(ctx, w.conn)
	defer f.end()
	if !d.ahead || st.contested() {
		if err := d.await(ctx); err != nil {
			return nil, err
		}
	}
	f.addCommand(w.sql.begin, "BEGIN")
	if len(st.copyData) > 0 {
		f.copy(w.sql.copy, st.copyData)
	}
	if !d.turn() {
		f.flush()
		failpoint.Hit("commit/rows-ahead")
		if err := d.awaitAhead(ctx, f); err != nil {
			return nil, err
		}
	}
	apart := s.apart(st)
	if apart {
		if err := s.settleRows(ctx, f, w, st, p); err != nil {
			return nil, err
		}
	}
	s.addStep(f, w, st, p)
	if apart {
		if err := f.trip(); err != nil {
			return nil, err
		}
		failpoint.Hit("commit/step-written")
		if time.Now().Unix() >= st.earliest {
			return nil, errEnded
		}
	}
	f.addCommand(w.sql.commit, "COMMIT")
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
func (s *session) settleRows(ctx context.Context, f *flight, w *writer, st *step, p *payload) error {
	if err := f.trip(); err != nil {
		return err
	}
	if st.contested() {
		f.end() // pgx sets time limits of its own
		if err := s.insertContested(ctx, w, st, p); err != nil {
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
func (s *session) insertContested(ctx context.Context, w *writer, st *step, p *payload) error {
	p.segments = p.segments[:0]
	for _, k := range st.picks {
		clients := k.clients
		if k.contested {
			var err error
			if clients, err = s.insert(ctx, w, k, st.trigger); err != nil {
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
func (s *session) insert(ctx context.Context, w *writer, k *pick, trigger int64) (*state.IDList, error) {
	texts := make([]string, k.clients.Len())
	for i := range texts {
		texts[i] = k.clients.At(i).Text()
	}
	c := k.live.Campaign
	rows, err := w.conn.Query(ctx, `INSERT INTO `+s.t.feedback+` (`+copyColumns+`)
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
func (s *session) addStep(f *flight, w *writer, st *step, p *payload) {
	f.add(w.sql.lane, s.lane.id, s.epoch, p.seq-1, st.nextOffset, p.notifications(), st.expired, len(st.dead), s.shipped.Load(), s.ends.list())
	rows := newRowSets(st)
	if rows.inserts.len() > 0 {
		f.add(w.sql.insert, rows.inserts.args()...)
	}
	if rows.edits.len() > 0 {
		f.add(w.sql.edit, rows.edits.editArgs()...)
	}
	if rows.repeats.len() > 0 {
		f.add(w.sql.repeat, rows.repeats.repeatArgs()...)
	}
	if rows.moves.len() > 0 {
		f.add(w.sql.move, rows.moves.moveArgs()...)
	}
	f.add(w.sql.outbox, s.lane.id, p.seq, p.notifications(), p.encode())
	f.add(w.sql.clean, s.lane.id, s.shipped.Load())
}

// committed does what may only follow the commit.
func (s *session) committed(ctx context.Context, st *step, p *payload) error {
	failpoint.Hit("commit/committed")
	s.agenda.remove(st.withdrawn())
	s.agenda.add(time.Now(), st.appointments()...)
	s.lane.noteDecided(st, p)
	s.noteReplayed(st, p)
	select {
	case s.decided <- p:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
