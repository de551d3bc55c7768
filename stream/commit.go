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

// stepsInFlight is how many steps travel on the lane's connection, one behind
// the other: the server takes up the next one as soon as it has committed the
// one before, and waits for nobody.
const stepsInFlight = 2

// committer makes steps durable, in order, each in one transaction, and hands
// them to the shipper. One goroutine sends, another reads answers.
//
// A step that fails takes those behind it along: they are in a transaction that
// has failed, or their compare-and-swap misses the seq that was not reached.
type committer struct {
	*session
	last    int64        // seq of the last step that was taken
	sent    []*departure // under way, oldest first
	flights chan *flight // the same, for the goroutine that reads
	spare   []*flight    // landed, for their buffers
	landed  chan error   // what became of them, in their order
}

// departure is one step on its way through its transaction and to Kafka.
type departure struct {
	seq   int64
	st    *step
	p     *payload      // what it ships; the committer's until done
	early *payload      // what it ships if it is not done again; nil if it was not handed to the shipper yet
	done  chan struct{} // closed when it is committed

	flight *flight // the committer's
}

// committed tells whether the step is.
func (d *departure) committed() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// decided is a departure that was committed before.
func decided(p *payload) *departure {
	d := &departure{seq: p.seq, p: p, done: make(chan struct{})}
	close(d.done)
	return d
}

// commitAll runs until there are no more steps, or one fails.
func (s *session) commitAll(ctx context.Context) (err error) {
	defer interrupt(ctx, s.sink)()
	c := &committer{session: s, last: s.seq, flights: make(chan *flight, stepsInFlight), landed: make(chan error, stepsInFlight)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for f := range c.flights {
			c.landed <- f.arrive()
		}
	}()
	defer func() {
		if err != nil {
			_ = s.sink.PgConn().Conn().Close() // what waits for an answer, ends
		}
		close(c.flights)
		<-read
	}()
	for steps := s.steps; steps != nil || len(c.sent) > 0; {
		ready := steps
		if len(c.sent) == stepsInFlight || !s.windowOpen(c.last+1) {
			ready = nil
		}
		select {
		case st, ok := <-ready: // not earlier: it is sealed anew until it is taken
			if ok {
				c.last++
				err = c.submit(ctx, &departure{seq: c.last, st: st, done: make(chan struct{})})
			} else {
				steps = nil
			}
		case failed := <-c.landed:
			err = c.land(ctx, failed)
		case <-s.advanced:
		case <-ctx.Done():
			err = ctx.Err()
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx) // not that the connection is closed
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// submit sends a step behind those that are under way. One whose halves must
// travel apart waits until they have landed, and is committed on return.
func (c *committer) submit(ctx context.Context, d *departure) error {
	if c.apart(d.st) {
		for len(c.sent) > 0 {
			select {
			case failed := <-c.landed:
				if err := c.land(ctx, failed); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return c.commitApart(ctx, d)
	}
	d.p = d.st.payload()
	d.p.seq = d.seq
	f := c.flight(time.Now().Add(c.cfg.SinkTimeout))
	c.addRows(f, d.st)
	c.addStep(f, d.st, d.p)
	f.addCommand(c.sql.commit, "COMMIT")
	f.depart()
	failpoint.Hit("commit/sent")
	if f.err != nil {
		return fmt.Errorf("commit step %d: %w", d.seq, f.err)
	}
	d.flight = f
	c.sent = append(c.sent, d)
	c.flights <- f
	if d.early != nil { // done again
		return nil
	}
	d.early = d.p
	return c.handOn(ctx, d)
}

// flight begins one in the memory of an earlier one.
func (c *committer) flight(until time.Time) *flight {
	n := len(c.spare)
	if n == 0 {
		return newFlight(until, c.sink)
	}
	f := c.spare[n-1]
	c.spare, f.until = c.spare[:n-1], until
	return f
}

// handOn gives a step to the shipper: when it is sent, or when it is committed
// where what it ships is not known before.
func (c *committer) handOn(ctx context.Context, d *departure) error {
	select {
	case c.departed <- d:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// land takes the answer to the oldest step that is under way. Where a client was
// notified before and nobody here knew, the unique index has refused the COPY:
// the step is done again by ON CONFLICT, and those behind it after it.
func (c *committer) land(ctx context.Context, failed error) error {
	d := c.sent[0]
	if failed == nil {
		c.sent = c.sent[1:]
		c.spare = append(c.spare, d.flight)
		return c.settle(ctx, d)
	}
	if !errors.Is(failed, errNotified) {
		return fmt.Errorf("commit step %d: %w", d.seq, failed)
	}
	again := c.sent
	c.sent = nil
	for _, behind := range again[1:] {
		if err := <-c.landed; err == nil {
			return fmt.Errorf("step %d is committed, and step %d before it is not", behind.seq, d.seq)
		}
	}
	c.noteConflict(d.st)
	if err := c.rollBack(ctx, d); err != nil {
		return err
	}
	for _, d := range again {
		d.st.seal(time.Now().Unix())
		if err := c.submit(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// settle does what may only follow the commit.
func (c *committer) settle(ctx context.Context, d *departure) error {
	failpoint.Hit("commit/committed")
	c.agenda.remove(d.st.withdrawn())
	c.agenda.add(time.Now(), d.st.appointments()...)
	c.lane.noteDecided(d.st, d.p)
	c.noteReplayed(d.st, d.p)
	c.recycle(d.st)
	close(d.done)
	if d.early != nil {
		return nil
	}
	return c.handOn(ctx, d)
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

// rollBack ends the transaction of a step that was refused.
func (s *session) rollBack(ctx context.Context, d *departure) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SinkTimeout)
	defer cancel()
	if _, err := s.sink.Exec(ctx, "rollback"); err != nil {
		return fmt.Errorf("roll back step %d: %w", d.seq, err)
	}
	failpoint.Hit("commit/rolled-back")
	return nil
}

func (s *session) noteConflict(st *step) {
	s.lane.conflicts.Add(1)
	for _, k := range st.picks {
		k.live.contested.Store(true)
	}
}

// apart tells whether the step's transaction must travel in halves, the feedback
// rows and everything else: because what ON CONFLICT leaves out is not shipped,
// or because a campaign's end may come before the commit does, so the clock is
// read once more before it is sent.
func (s *session) apart(st *step) bool {
	return st.contested() || time.Now().Add(s.cfg.SinkTimeout).Unix() >= st.earliest
}

// contested tells whether some of the step's clients go by ON CONFLICT.
func (st *step) contested() bool {
	return slices.ContainsFunc(st.picks, func(k *pick) bool { return k.contested })
}

// commitApart decides a step whose halves travel apart. Where a campaign's end
// has come meanwhile, it is decided anew without it; where a client was notified
// before, by ON CONFLICT.
func (c *committer) commitApart(ctx context.Context, d *departure) error {
	for {
		err := c.tryApart(ctx, d)
		if err == nil {
			return c.settle(ctx, d)
		}
		if !errors.Is(err, errNotified) && !errors.Is(err, errEnded) {
			return fmt.Errorf("commit step %d: %w", d.seq, err)
		}
		if errors.Is(err, errNotified) {
			c.noteConflict(d.st)
		}
		if err := c.rollBack(ctx, d); err != nil {
			return err
		}
		d.st.seal(time.Now().Unix())
	}
}

// tryApart runs the step's transaction once. On error it is not committed, or not
// known to be.
func (c *committer) tryApart(ctx context.Context, d *departure) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.SinkTimeout)
	defer cancel()
	until, _ := ctx.Deadline()
	d.p = d.st.payload()
	d.p.seq = d.seq
	f := newFlight(until, c.sink)
	c.addRows(f, d.st)
	if d.st.contested() {
		if err := f.trip(); err != nil {
			return err
		}
		if err := c.insertContested(ctx, d.st, d.p); err != nil {
			return err
		}
		failpoint.Hit("commit/rows-written")
	}
	c.addStep(f, d.st, d.p)
	if err := f.trip(); err != nil {
		return err
	}
	failpoint.Hit("commit/step-written")
	if time.Now().Unix() >= d.st.earliest {
		return errEnded
	}
	f.addCommand(c.sql.commit, "COMMIT")
	f.depart()
	failpoint.Hit("commit/sent-apart")
	return f.arrive()
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
	rows, err := s.sink.Query(ctx, `INSERT INTO `+s.t.feedback+` (`+copyColumns+`)
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

// addRows puts the beginning of the step's transaction and its feedback rows on
// board.
func (s *session) addRows(f *flight, st *step) {
	f.addCommand(s.sql.begin, "BEGIN")
	if len(st.copyData) > 0 {
		f.copy(s.sql.copy, st.copyData)
	}
}

// addStep puts on board what changes everything but the feedback rows. Each
// compare-and-swap fails the transaction if it misses.
func (s *session) addStep(f *flight, st *step, p *payload) {
	f.add(s.sql.lane, s.lane.id, s.epoch, p.seq-1, st.nextOffset, p.notifications(), st.expired, len(st.dead), s.shipped.Load(), s.ends.list())
	rows := newRowSets(st)
	if len(rows.inserts) > 0 {
		f.copySmall(s.sql.insert, copyRows(rows.inserts))
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
