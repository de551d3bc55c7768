package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/failpoint"
	"dinnerbell/stream/record"
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
	claim     *claim
	lane      *lane
	reader    querier // for looking into what holds the connection up
	letters   letterMaker
	starts    *startTimes
	shipped   *shipProgress
	corrected *correctedKeys
	steps     <-chan *step
	toShip    chan<- *inflightStep
	buffers   chan<- []byte

	last     int64              // seq of the last step that was taken
	sent     []*inflightStep    // under way, oldest first
	inflight chan *inflightStep // the same, for the goroutine that reads
	spare    []*flight          // landed, for their buffers
	results  chan error         // what became of them, in their order

	unshipped []unshippedStep // oldest first
	bytes     int             // that they hold
}

// unshippedStep is one that holds memory until it is shipped.
type unshippedStep struct {
	seq   int64
	bytes int
}

// windowBytes bounds, as a multiple of StepBytes, what steps hold that are decided
// and not shipped. Few steps are that large: contents of many kilobytes, or dead
// letters.
const windowBytes = 3

// inflightStep is one step on its way through its transaction and to Kafka.
type inflightStep struct {
	seq   int64
	st    *step
	p     *record.Payload // what it ships; the committer's until done
	early *record.Payload // what it ships if it is not done again; nil if it was not handed to the shipper yet
	done  chan struct{}   // closed when it is committed
	tries int             // how often it was done again for the sake of other lanes
	began time.Time       // of the last try

	flight *flight // the committer's
}

// isCommitted tells whether the step is.
func (d *inflightStep) isCommitted() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// newCommittedStep is a departure that was committed before.
func newCommittedStep(p *record.Payload) *inflightStep {
	d := &inflightStep{seq: p.Seq, p: p, done: make(chan struct{})}
	close(d.done)
	return d
}

// run works until there are no more steps, or one fails.
func (c *committer) run(ctx context.Context) (err error) {
	defer interrupt(ctx, c.claim.conn)()
	read := make(chan struct{})
	go func() {
		defer close(read)
		for d := range c.inflight {
			err := d.flight.arrive()
			if err == nil {
				c.afterCommit(d) // the sender may be in the middle of writing the next one
			}
			c.results <- err
		}
	}()
	defer func() {
		if err != nil {
			_ = c.claim.conn.PgConn().Conn().Close() // what waits for an answer, ends
		}
		close(c.inflight)
		<-read
	}()
	for steps := c.steps; steps != nil || len(c.sent) > 0; {
		ready := steps
		if len(c.sent) == stepsInFlight || !c.isWindowOpen(c.last+1) {
			ready = nil
		}
		select {
		case st, ok := <-ready: // not earlier: it is sealed anew until it is taken
			if ok {
				c.last++
				c.unshipped = append(c.unshipped, unshippedStep{c.last, st.memoryHeld()})
				c.bytes += st.memoryHeld()
				err = c.submitStep(ctx, &inflightStep{seq: c.last, st: st, done: make(chan struct{})})
			} else {
				steps = nil
			}
		case failed := <-c.results:
			err = c.handleResult(ctx, failed)
		case <-c.shipped.advanced:
		case <-ctx.Done():
			err = ctx.Err()
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx) // not that the connection is closed
		}
		if err != nil {
			return c.explainSlow(ctx, err)
		}
	}
	return nil
}

// isWindowOpen tells whether step seq may be decided: K ≥ seq - window, and what is
// not shipped does not hold too much.
func (c *committer) isWindowOpen(seq int64) bool {
	shipped := c.shipped.seq.Load()
	for len(c.unshipped) > 0 && c.unshipped[0].seq <= shipped {
		c.bytes -= c.unshipped[0].bytes
		c.unshipped = c.unshipped[1:]
	}
	return seq-shipped <= int64(c.claim.cfg.Window) && c.bytes < windowBytes*c.claim.cfg.StepBytes
}

// submitStep sends a step behind those that are under way. One that is contested
// waits until they have landed, and is committed on return.
func (c *committer) submitStep(ctx context.Context, d *inflightStep) error {
	d.st.resealIfChanged()
	d.began = time.Now()
	if d.st.isContested() {
		for len(c.sent) > 0 {
			select {
			case failed := <-c.results:
				if err := c.handleResult(ctx, failed); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		d.st.resealIfChanged()
		return c.commitContested(ctx, d)
	}
	d.p = c.letters.payload(d.st)
	d.p.Seq = d.seq
	f := c.flight(time.Now().Add(c.claim.cfg.SinkTimeout))
	c.addFeedbackRows(f, d.st)
	c.addStepChanges(f, d.st, d.p)
	f.depart()
	failpoint.Hit("commit/sent")
	if f.err != nil {
		return fmt.Errorf("commit step %d: %w", d.seq, f.err)
	}
	d.flight = f
	if d.early == nil { // otherwise it is done again
		d.early = d.p
		if err := c.handToShipper(ctx, d); err != nil {
			return err
		}
	}
	c.sent = append(c.sent, d)
	c.inflight <- d
	return nil
}

// flight begins one in the memory of an earlier one.
func (c *committer) flight(until time.Time) *flight {
	n := len(c.spare)
	if n == 0 {
		return newFlight(until, c.claim.conn)
	}
	f := c.spare[n-1]
	c.spare, f.until = c.spare[:n-1], until
	return f
}

// handToShipper gives a step to the shipper: when it is sent, or when it is committed
// where what it ships is not known before.
func (c *committer) handToShipper(ctx context.Context, d *inflightStep) error {
	select {
	case c.toShip <- d:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// handleResult takes the answer to the oldest step that is under way. Where a client was
// notified before and nobody here knew, the unique index has refused the COPY:
// the step is done again by ON CONFLICT, and those behind it after it. Where a
// campaign's end has come meanwhile, it is decided anew without it.
func (c *committer) handleResult(ctx context.Context, failed error) error {
	d := c.sent[0]
	if failed == nil {
		c.sent = c.sent[1:]
		c.spare = append(c.spare, d.flight)
		return nil
	}
	again := c.sent
	c.sent = nil
	if err := c.checkRetry(d, failed); err != nil {
		return err
	}
	for _, behind := range again[1:] {
		if err := <-c.results; err == nil {
			return fmt.Errorf("step %d is committed, and step %d before it is not", behind.seq, d.seq)
		}
	}
	if err := c.rollBack(ctx, d, failed); err != nil {
		return err
	}
	for _, d := range again {
		d.st.seal(time.Now().Unix())
		if err := c.submitStep(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// checkRetry gives nil where the step can be done again, and notes why.
func (c *committer) checkRetry(d *inflightStep, failed error) error {
	switch {
	case errors.Is(failed, errRefused):
		c.lane.svc.counters.conflicts.Add(1)
		return d.st.markContested(failed)
	case errors.Is(failed, errDropped):
		return c.claim.droppedRowsHalt(failed.Error())
	case (errors.Is(failed, errStale) || isLockedOut(failed)) && d.tries < stepTries:
		d.tries++
		c.claim.cfg.Logger.Debug("step is done again", "lane", c.lane.id, "step", d.seq, "why", failed)
		return nil
	case errors.Is(failed, errEnded) && time.Now().Unix() >= d.st.earliest-1:
		return nil // otherwise one of the clocks was set, and the next session compares them again
	}
	return fmt.Errorf("commit step %d: %w", d.seq, failed)
}

// afterCommit does what may only follow the commit.
func (c *committer) afterCommit(d *inflightStep) {
	failpoint.Hit("commit/committed")
	c.lane.widenSteps(time.Since(d.began))
	for _, l := range d.st.refused {
		l.refused.Store(true)
	}
	c.lane.noteLeftOut(d.p, len(d.st.dead))
	c.starts.applyStep(time.Now(), d.st)
	c.lane.noteDecided(d.st, d.p)
	c.lane.noteReplayed(d.st, d.p)
	c.recycleBuffer(d.st)
	close(d.done)
}

// recycleBuffer gives the step's buffer back, unless it has grown for something rare.
func (c *committer) recycleBuffer(st *step) {
	if cap(st.copyData) > 2*c.claim.cfg.StepBytes {
		return
	}
	select {
	case c.buffers <- st.copyData:
	default:
	}
}

// rollBack ends the transaction of a step that was refused, and has the step
// made true again where the campaign table is not as it expected.
func (c *committer) rollBack(ctx context.Context, d *inflightStep, failed error) error {
	if _, err := bounded(ctx, c.claim.cfg.SinkTimeout, func(ctx context.Context) (pgconn.CommandTag, error) { return c.claim.conn.Exec(ctx, "rollback") }); err != nil {
		return fmt.Errorf("roll back step %d: %w", d.seq, err)
	}
	failpoint.Hit("commit/rolled-back")
	if !errors.Is(failed, errStale) {
		return nil
	}
	if err := c.reconcileStep(ctx, d.st); err != nil {
		return fmt.Errorf("roll back step %d: %w", d.seq, err)
	}
	return nil
}

// addFeedbackRows puts the beginning of the step's transaction and its feedback rows on
// board.
func (c *committer) addFeedbackRows(f *flight, st *step) {
	f.addCommand(c.claim.sql.begin, "BEGIN")
	if c.claim.table.ownCode {
		f.add(c.claim.sql.path, c.claim.table.path())
	}
	if len(st.copyData) > 0 {
		f.copy(c.claim.sql.copy, st.copyData, st.copied)
	}
}

// addStepChanges puts on board what changes everything but the feedback rows, and the
// commit. Each compare-and-swap fails the transaction if it misses; so does the
// clock, once a campaign of the step has ended. It is Postgres' own, since what is
// on board is carried out whenever the server comes to it, even if nobody waits
// for it any more.
func (c *committer) addStepChanges(f *flight, st *step, p *record.Payload) {
	if c.claim.table.ownCode {
		f.add(c.claim.sql.path, "pg_catalog")
	}
	f.add(c.claim.sql.lane, c.lane.id, c.claim.epoch, p.Seq-1, st.nextOffset, p.Notifications(), st.expired, p.RefusedMessages(), c.shipped.seq.Load(), c.shipped.ends.List())
	rows := newRowSets(st)
	if len(rows.inserts) > 0 {
		f.copySmall(c.claim.sql.insert, copyRows(rows.inserts))
	}
	if rows.edits.len() > 0 {
		f.add(c.claim.sql.edit, rows.edits.editArgs()...)
	}
	if rows.repeats.len() > 0 {
		f.add(c.claim.sql.repeat, rows.repeats.repeatArgs()...)
	}
	if rows.moves.len() > 0 {
		f.add(c.claim.sql.move, rows.moves.moveArgs()...)
	}
	f.add(c.claim.sql.outbox, c.lane.id, p.Seq, p.Notifications(), p.Encode())
	f.add(c.claim.sql.clean, c.lane.id, c.shipped.seq.Load())
	if len(st.picks) > 0 {
		f.add(c.claim.sql.shape, c.claim.table.oid, c.claim.table.name, c.claim.table.shape)
		f.add(c.claim.sql.inTime, float64(st.earliest)-c.claim.ahead.Seconds())
	}
	if c.claim.table.ownCode { // deferred triggers run at the commit
		f.add(c.claim.sql.path, c.claim.table.path())
	}
	f.addCommand(c.claim.sql.commit, "COMMIT")
}
