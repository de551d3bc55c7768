package stream

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/failpoint"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
)

// stepsInFlight is how many steps are on the lane's connection at once: the server
// begins the next step as soon as it has committed the one before, without waiting
// for a round trip.
const stepsInFlight = 2

// committer commits steps in order, each in one transaction, and hands them to the
// shipper. One goroutine sends steps, another reads the server's answers.
//
// When a step fails, the steps behind it fail too: they are in the failed
// transaction, or their compare-and-swap misses the seq that was not reached.
type committer struct {
	claim     *takeover.Claim
	lane      *lane
	reader    sink.Querier // looks for the locks that a slow step waits for
	letters   record.LetterMaker
	starts    *startTimes
	shipped   *shipProgress
	corrected *correctedKeys
	guarded   *guardedCampaigns
	late      *lateWork       // nil: late subscribers are not served
	demand    chan<- struct{} // to the decider: a step can be sent
	steps     <-chan *step
	toShip    chan<- *inflightStep
	buffers   chan<- []byte

	last     int64              // seq of the last step that was received
	sent     []*inflightStep    // sent and not answered, oldest first
	inflight chan *inflightStep // the same steps, to the goroutine that reads answers
	spare    []*sink.Pipeline   // of answered steps, for their buffers
	results  chan error         // answers, in the order of sent; nil: committed

	unshipped []unshippedStep // oldest first
	bytes     int             // that unshipped steps hold
}

// unshippedStep counts the memory of a step that is not shipped yet.
type unshippedStep struct {
	seq   int64
	bytes int
}

// windowBytes bounds, as a multiple of StepBytes, the memory of steps that are
// decided and not shipped. Few steps are that large: contents of many kilobytes, or
// dead letters.
const windowBytes = 3

// inflightStep is a step on its way through its transaction and to Kafka.
type inflightStep struct {
	seq   int64
	st    *step
	p     *record.Payload // the payload to ship; only the committer uses it until done is closed
	early *record.Payload // the payload to ship if the step is not repeated; nil if the shipper does not have the step yet
	done  chan struct{}   // closed when the step is committed
	tries int             // how often the step was repeated because of other lanes
	began time.Time       // of the last try

	pipeline *sink.Pipeline // used by the committer alone
}

// isCommitted reports whether the step is committed.
func (d *inflightStep) isCommitted() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// newCommittedStep returns a step that an earlier session has committed.
func newCommittedStep(p *record.Payload) *inflightStep {
	d := &inflightStep{seq: p.Seq, p: p, done: make(chan struct{})}
	close(d.done)
	return d
}

// run commits steps until there are no more, or one fails.
func (c *committer) run(ctx context.Context) (err error) {
	defer sink.CloseOnEnd(ctx, c.claim.Conn)()
	read := make(chan struct{})
	go func() {
		defer close(read)
		for d := range c.inflight {
			err := d.pipeline.Receive()
			if err == nil {
				c.afterCommit(d) // the sender may be in the middle of writing the next one
			}
			c.results <- err
		}
	}()
	defer func() {
		if err != nil {
			_ = c.claim.Conn.PgConn().Conn().Close() // ends the goroutine that waits for an answer
		}
		close(c.inflight)
		<-read
	}()
	for steps, asked := c.steps, false; steps != nil || len(c.sent) > 0; {
		ready, demand := steps, c.demand
		if len(c.sent) == stepsInFlight || !c.isWindowOpen(c.last+1) {
			ready, demand = nil, nil
		} else if asked {
			demand = nil
		}
		select {
		case demand <- struct{}{}:
			asked = true
		case st, ok := <-ready: // not earlier: the decider seals a step again until it is received here
			asked = false
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
			err = context.Cause(ctx) // rather than that the connection is closed
		}
		if err != nil {
			return c.explainSlow(ctx, err)
		}
	}
	return nil
}

// isWindowOpen reports whether step seq may be decided: K ≥ seq - window, and the
// steps that are not shipped hold less than windowBytes.
func (c *committer) isWindowOpen(seq int64) bool {
	shipped := c.shipped.seq.Load()
	for len(c.unshipped) > 0 && c.unshipped[0].seq <= shipped {
		c.bytes -= c.unshipped[0].bytes
		c.unshipped = c.unshipped[1:]
	}
	return seq-shipped <= int64(c.claim.Config.Window) && c.bytes < windowBytes*c.claim.Config.StepBytes
}

// submitStep sends a step behind the ones in flight. A contested step waits until
// those are answered, and is committed when submitStep returns.
func (c *committer) submitStep(ctx context.Context, d *inflightStep) error {
	d.st.resealIfChanged(c.lane.svc.now())
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
		d.st.resealIfChanged(c.lane.svc.now())
		return c.commitContested(ctx, d)
	}
	d.p = d.st.payload(&c.letters)
	d.p.Seq = d.seq
	f := c.nextPipeline(time.Now().Add(c.claim.Config.SinkTimeout))
	c.addFeedbackRows(f, d.st)
	c.addStepChanges(f, d.st, d.p)
	f.Send()
	failpoint.Hit("commit/sent")
	if f.Err != nil {
		return fmt.Errorf("commit step %d: %w", d.seq, f.Err)
	}
	d.pipeline = f
	if d.early == nil { // otherwise the step is repeated, and the shipper has it
		d.early = d.p
		if err := c.handToShipper(ctx, d); err != nil {
			return err
		}
	}
	c.sent = append(c.sent, d)
	c.inflight <- d
	return nil
}

// nextPipeline returns a pipeline, in the memory of an earlier one if there is one.
func (c *committer) nextPipeline(until time.Time) *sink.Pipeline {
	n := len(c.spare)
	if n == 0 {
		return sink.NewPipeline(until, c.claim.Conn)
	}
	f := c.spare[n-1]
	c.spare, f.Deadline = c.spare[:n-1], until
	return f
}

// handToShipper queues the step for the shipper: right after it is sent or, for a
// contested step, after its commit, because only the commit shows which clients are
// new.
func (c *committer) handToShipper(ctx context.Context, d *inflightStep) error {
	select {
	case c.toShip <- d:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// handleResult handles the answer to the oldest step in flight. Where the unique index
// has refused the COPY, a client was notified before and the delivered cache did not
// have it: the step is repeated with ON CONFLICT, and the steps behind it after it.
// Where a campaign of the step has ended meanwhile, the step is decided again without
// that campaign.
func (c *committer) handleResult(ctx context.Context, failed error) error {
	d := c.sent[0]
	if failed == nil {
		c.sent = c.sent[1:]
		c.spare = append(c.spare, d.pipeline)
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
		d.st.sealStep(c.lane.svc.now().Unix())
		if err := c.submitStep(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// checkRetry returns nil if the step can be repeated, and prepares it for that. It
// returns the error that ends the session otherwise.
func (c *committer) checkRetry(d *inflightStep, failed error) error {
	switch {
	case errors.Is(failed, sink.ErrRowRefused):
		c.lane.svc.counters.conflicts.Add(1)
		return d.st.markContested(failed)
	case errors.Is(failed, errTooManyGuarded):
		return nil // each time another campaign is guarded
	case errors.Is(failed, sink.ErrRowsDropped):
		return c.claim.DroppedRowsHalt(failed.Error())
	case (errors.Is(failed, sink.ErrStaleRow) || sink.IsLockConflict(failed)) && d.tries < stepTries:
		d.tries++
		c.claim.Config.Logger.Debug("step is done again", "lane", c.lane.id, "seq", d.seq, "reason", failed)
		return nil
	case errors.Is(failed, sink.ErrCampaignEnded) && c.lane.svc.now().Unix() >= d.st.earliest-1:
		return nil // otherwise one of the clocks was set; the next session compares them again
	}
	return fmt.Errorf("commit step %d: %w", d.seq, failed)
}

// afterCommit publishes a committed step: to the start times, to status and log, to a
// replay, and to the shipper.
func (c *committer) afterCommit(d *inflightStep) {
	failpoint.Hit("commit/committed")
	c.lane.widenSteps(time.Since(d.began))
	for _, l := range d.st.refused {
		l.refused.Store(true)
	}
	for _, k := range d.st.picks {
		k.live.taken = k.live.taken || k.notified > 0
	}
	c.guarded.noteStep(d.st) // before the start times bring the campaigns back
	c.starts.applyStep(c.lane.svc.now(), d.st)
	c.starts.applyPostponed(c.lane.svc.now(), d.st)
	c.late.applyStep(d.st)
	c.lane.noteDecided(d.st, d.p)
	c.lane.noteLeftOut(d.st, d.p) // the news of a refusal follow those of the acceptance
	c.lane.noteReplayed(d.st, d.p)
	if len(d.st.parked) > 0 {
		failpoint.Hit("commit/parked")
		c.lane.noteParked(d.st)
	}
	if d.st.paced > 0 {
		c.lane.svc.pace.returnTokens(d.st.paced - d.p.Notifications())
	}
	c.recycleBuffer(d.st)
	close(d.done)
}

// recycleBuffer gives the step's buffer back to the decider, unless the buffer has
// grown far beyond StepBytes.
func (c *committer) recycleBuffer(st *step) {
	if cap(st.copyData) > 2*c.claim.Config.StepBytes {
		return
	}
	select {
	case c.buffers <- st.copyData:
	default:
	}
}

// rollBack ends the transaction of a refused step. Where a row of the campaign table
// was not as the step expected, it reconciles the step with the table.
func (c *committer) rollBack(ctx context.Context, d *inflightStep, failed error) error {
	if _, err := bounded(ctx, c.claim.Config.SinkTimeout, func(ctx context.Context) (pgconn.CommandTag, error) { return c.claim.Conn.Exec(ctx, "rollback") }); err != nil {
		return fmt.Errorf("roll back step %d: %w", d.seq, err)
	}
	failpoint.Hit("commit/rolled-back")
	if !errors.Is(failed, sink.ErrStaleRow) {
		return nil
	}
	if err := c.reconcileStep(ctx, d.st); err != nil {
		return fmt.Errorf("roll back step %d: %w", d.seq, err)
	}
	return nil
}

// addFeedbackRows adds the beginning of the step's transaction and its feedback rows
// to the pipeline.
func (c *committer) addFeedbackRows(p *sink.Pipeline, st *step) {
	c.claim.Statements.AddFeedbackRows(p, c.claim.Feedback, st.copyData, st.copied)
}

// addStepChanges adds all other changes of the step and the commit to the pipeline.
func (c *committer) addStepChanges(p *sink.Pipeline, st *step, ships *record.Payload) {
	st.counts = c.claim.Statements.AddChanges(p, c.claim.Feedback, &sink.StepChanges{
		Lane: c.lane.id, Epoch: c.claim.Epoch, Seq: ships.Seq, NextOffset: st.nextOffset,
		Notifications: int64(ships.Notifications()), Expired: st.expired, Refused: ships.RefusedMessages(),
		Shipped: c.shipped.seq.Load(), Ends: c.shipped.ends.List(),
		Campaigns: st.campaignRows(), Late: st.lateRows(), Payload: ships.Encode(), SourceLSN: st.sourceLSN,
		Notifies: len(st.picks) > 0, CommitBefore: float64(st.earliest) - c.claim.ClockAhead.Seconds(),
	})
}

// explainSlow adds to an error why the step was not finished in time: it names the
// holders of the lock that the step waits for, or calls the table slow. The step's
// connection must still be open.
func (c *committer) explainSlow(ctx context.Context, err error) error {
	e, _ := errors.AsType[*pgconn.PgError](err)
	locked := e != nil && e.Code == sink.LockNotAvailable
	if ctx.Err() != nil || !locked && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	holders, failed := bounded(ctx, c.claim.Config.SinkTimeout, func(ctx context.Context) ([]string, error) {
		if locked { // the server has given up waiting and no longer names the holders
			return c.claim.Tables.ReadLongHolders(ctx, c.reader, c.claim.Conn.PgConn().PID())
		}
		return sink.ReadHolders(ctx, c.reader, c.claim.Conn.PgConn().PID())
	})
	switch {
	case failed != nil || locked && len(holders) == 0: // Postgres does not answer at all
		return err
	case locked:
		return fmt.Errorf("%w: locks of the tables are held by %s", err, strings.Join(holders, "; "))
	case len(holders) > 0:
		return fmt.Errorf("%w: it waits for a lock of %s", err, strings.Join(holders, "; "))
	}
	before := c.lane.stepClients()
	c.lane.narrowSteps()
	return fmt.Errorf("%w: Postgres does not finish a step of %d clients within %s; are triggers, constraints or disk of feedback table %s slow? The next steps have %d", err, before, c.claim.Config.SinkTimeout, c.claim.Tables.Feedback, c.lane.stepClients())
}
