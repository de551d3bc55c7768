package takeover

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/failpoint"
	"dinnerbell/internal/halt"
	"dinnerbell/internal/precondition"
	"dinnerbell/state/id"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/topic"
	"dinnerbell/stream/topic/fetch"
)

// Timeout bounds one takeover; the lane tries again.
const Timeout = 60 * time.Second

// Claim is the ownership of a lane: the connections that a TAKEOVER has opened and the
// positions that it has read. The session does not change them.
type Claim struct {
	Lane   int32
	Config Config
	Tables sink.Tables
	opts   Options
	phase  PhaseWatch

	Conn       *pgx.Conn            // to the sink; used by the committer alone
	counted    bool                 // holds a token of opts.slots
	Statements *sink.StepStatements // prepared on conn
	ClockAhead time.Duration        // upper bound of how far our clock is ahead of Postgres'
	Client     *kgo.Client          // the intake fetches with it, the shipper produces

	Feedback *sink.FeedbackTable // each step's transaction checks that the table is still this one
	IDs      topic.IDs
	expected topic.Identity
	Limits   topic.Limits

	Epoch      int64
	Decided    int64 // P
	Shipped    int64 // K
	NextOffset int64
	Totals     Totals
	SourceID   string            // the source in which SourceLSN counts
	SourceLSN  id.LSN            // changes of the subscriptions up to here are handled for late subscribers; 0: none
	Pending    []*record.Payload // decided and not shipped
	// Positions in Kafka that the last step wrote to Postgres: neither may be less now.
	ShippedBefore int64
	EndsBefore    []int64                  // of the notifications topic
	ProgressLost  *topic.ProgressLostError // set if the progress partition does not hold K
}

// Totals are the lane's counters since its deployment began: notifications, messages
// that came after their end, refused messages.
type Totals struct{ Notified, Expired, Dead int64 }

// Options connect a takeover with its caller: the bound on connections, and the
// functions that show its progress.
type Options struct {
	Now      func() time.Time      // the clock that decides whether a campaign is over; nil: time.Now
	Slots    chan struct{}         // a token for each lane's own connection; nil: unbounded
	Patience time.Duration         // how long a phase may take before slow is called; 0: slow is never called
	LastEnd  *topic.TransactionEnd // what former takeovers of the lane have found; nil: nothing
	Waiting  func(error)           // called when the takeover waits for a slot; nil if slots is nil
	Slow     func(step string, why error)
}

// New makes a claim that has nothing yet: Connect, Fence and Finish follow, in this
// order.
func New(cfg Config, lane int32, opts Options) *Claim {
	if opts.LastEnd == nil {
		opts.LastEnd = &topic.TransactionEnd{}
	}
	return &Claim{Lane: lane, Config: cfg, Tables: cfg.Sink.Tables(), opts: opts}
}

// TakeOver makes this process the lane's owner. The order is the protocol:
//
//  1. Postgres: end the predecessor's connections and raise the epoch. It waits
//     for a predecessor's transaction on the lane row; the predecessor's next
//     step misses its compare-and-swap.
//  2. Kafka: a new client, InitProducerID. That fences the predecessor and
//     aborts what it left open.
//  3. Read K from the progress topic. Nothing can add to it any more.
//  4. K ≤ P, and the outbox holds (K, P]; otherwise a sink was rolled back
//     behind our progress, and the lane halts (rollback.go).
//  5. Load the outbox above K. The session then loads the campaigns and reads the
//     input from next_offset.
//
// On error no connection stays open, and only the epoch has changed.
func TakeOver(ctx context.Context, cfg Config, lane int32, opts Options) (_ *Claim, err error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	c := New(cfg, lane, opts)
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if opts.Patience > 0 {
		defer c.phase.Watch(ctx, opts.Patience, opts.Slow)()
	}
	if err := c.Connect(ctx); err != nil {
		return nil, err
	}
	return c, c.ConfirmHalt(ctx, c.Finish(ctx))
}

// Close ends the claim's connections.
func (c *Claim) Close() {
	if c.Conn != nil {
		sink.CloseConn(c.Conn)
	}
	if c.counted {
		<-c.opts.Slots
	}
	if c.Client != nil {
		topic.CloseClient(c.Client, c.Config.Logger, c.Lane)
	}
}

// Finish does steps 2 to 5, after Connect.
func (c *Claim) Finish(ctx context.Context) (err error) {
	if err := c.checkTopics(); err != nil { // first: nothing must be fenced in a cluster that is not ours
		return err
	}
	if err := c.Fence(ctx); err != nil {
		return err
	}
	c.phase.Enter("compare the sinks", nil)
	if err := c.compareSinks(ctx); err != nil {
		return err
	}
	c.phase.Enter("load the outbox", nil)
	if c.Pending, err = c.loadOutbox(ctx, c.Shipped); err != nil {
		return err
	}
	failpoint.Hit("takeover/outbox-loaded")
	c.phase.Enter("check the input", nil)
	return c.checkInput(ctx)
}

// ConfirmHalt returns a halt only if the lane is still ours. If another owner has
// raised the epoch since, our positions of Postgres and of Kafka are of different
// moments, and their contradiction means nothing.
func (c *Claim) ConfirmHalt(ctx context.Context, err error) error {
	if _, halted := errors.AsType[*halt.Error](err); !halted {
		return err
	}
	epoch, readErr := c.Tables.ReadEpoch(ctx, c.Conn, c.Lane)
	if readErr != nil {
		return readErr
	}
	if epoch != c.Epoch {
		return fmt.Errorf("take lane %d over: %w", c.Lane, sink.ErrTakenOver)
	}
	return err
}

// Connect does step 1 and makes the client of step 2. It also checks the
// preconditions.
func (c *Claim) Connect(ctx context.Context) error {
	if err := c.openSink(ctx); err != nil {
		return err
	}
	c.phase.Enter(fmt.Sprintf("raise the epoch of lane %d in %s", c.Lane, c.Tables.Lane), nil)
	if err := c.raiseEpoch(ctx); err != nil {
		return err
	}
	failpoint.Hit("takeover/epoch-raised")
	return c.openKafka()
}

// checkPreconditions makes the checks of a session, and keeps the facts that they have
// read: the topics' ids, the limits of their records, the feedback table.
func (c *Claim) checkPreconditions(ctx context.Context) error {
	var found systemFacts
	report, err := readPreconditions(ctx, c.Config, precondition.AtSession, c.Conn, &found)
	if err := report.Unmet(err); err != nil {
		return err
	}
	c.IDs = found.cluster.IDs(c.Config.Kafka)
	c.Limits = topic.NewLimits(found.cluster, c.Config.Kafka)
	c.Feedback = found.catalogue.Feedback
	return nil
}

func (c *Claim) openSink(ctx context.Context) (err error) {
	if err := c.awaitConnection(ctx); err != nil {
		return err
	}
	c.phase.Enter("open the connection to the sink", nil)
	if c.Conn, err = c.Config.Sink.Connect(ctx, c.LaneMark()+c.Config.Kafka.InstanceID); err != nil {
		return err
	}
	if err := c.readySink(ctx); err != nil {
		return err
	}
	c.phase.Enter("check the preconditions", nil)
	if err := c.checkPreconditions(ctx); err != nil {
		return err
	}
	c.phase.Enter("end the former owners' connections to the sink", nil)
	if c.Statements, err = sink.PrepareStep(ctx, c.Conn, c.Tables, c.Feedback); err != nil {
		return err
	}
	return c.endPredecessors(ctx)
}

// readySink sets the connection up for the lane's statements and compares the clocks.
func (c *Claim) readySink(ctx context.Context) error {
	if err := sink.PlanByKeys(ctx, c.Conn); err != nil {
		return err
	}
	now := c.opts.Now
	if now == nil {
		now = time.Now
	}
	skew, off, err := sink.ClockSkew(ctx, c.Conn, now)
	c.ClockAhead = skew + off
	return err
}

// awaitConnection waits until sink.max_connections allows one more connection.
func (c *Claim) awaitConnection(ctx context.Context) error {
	slots := c.opts.Slots
	if slots == nil {
		return nil
	}
	select {
	case slots <- struct{}{}:
		c.counted = true
		return nil
	default:
	}
	err := fmt.Errorf("the %d connections that sink.max_connections leaves to lanes are in use by others; raise it, or run another daemon of the group", cap(slots))
	c.opts.Waiting(err)
	select {
	case slots <- struct{}{}:
		c.counted = true
		return nil
	case <-ctx.Done():
		return err
	}
}

func (c *Claim) raiseEpoch(ctx context.Context) error {
	row, err := c.Tables.RaiseEpoch(ctx, c.Conn, c.Lane)
	if errors.Is(err, pgx.ErrNoRows) { // a new partition
		if err = InitLanes(ctx, c.Config, c.Conn); err == nil {
			row, err = c.Tables.RaiseEpoch(ctx, c.Conn, c.Lane)
		}
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("there is no lane %d: topic %s has no such partition; `dinnerbell status` lists the lanes", c.Lane, c.Config.Kafka.Campaigns)
	}
	if err != nil {
		return fmt.Errorf("take lane %d in %s: %w", c.Lane, c.Tables.Lane, err)
	}
	c.Epoch, c.Decided, c.NextOffset, c.ShippedBefore, c.EndsBefore = row.Epoch, row.Decided, row.NextOffset, row.Shipped, row.Ends
	c.expected.Cluster, c.expected.Campaigns, c.expected.Notifications, c.expected.Progress = row.Cluster, row.Campaigns, row.Notifications, row.Progress
	c.SourceID, c.SourceLSN = row.SourceID, row.SourceLSN
	c.Totals.Notified, c.Totals.Expired, c.Totals.Dead = row.Notified, row.Expired, row.Dead
	return nil
}

// Fence does steps 2 and 3: after InitProducerID nobody else can add to the
// lane's transactions, so the K that is read then is final.
func (c *Claim) Fence(ctx context.Context) error {
	trouble := func(ctx context.Context) error {
		return topic.TransactionCoordinator(c.Config.Kafka.TransactionalID(c.Lane)).Diagnose(ctx, c.Config.Kafka, c.Client)
	}
	c.phase.Enter(fmt.Sprintf("fence the former producer of lane %d", c.Lane), trouble)
	end := c.readLastEnd(ctx)
	_, epoch, err := c.Client.ProducerID(ctx)
	if errors.Is(err, kerr.TransactionalIDAuthorizationFailed) {
		return c.ExplainTransaction(err)
	}
	if err != nil {
		return fmt.Errorf("fence the former producer of lane %d: %w", c.Lane, err)
	}
	failpoint.Hit("takeover/fenced")
	if end.Known && epoch == end.ProducerEpoch+1 { // otherwise the former owner was at work in between
		*c.opts.LastEnd = end
	}
	c.phase.Enter(fmt.Sprintf("read the progress of lane %d from topic %s", c.Lane, c.Config.Kafka.Progress), nil)
	err = c.readProgress(ctx)
	if isOpenTransaction(err) {
		return c.endLostTransaction(ctx, err)
	}
	return err
}

// ExplainTransaction adds to an error about the lane's transactional id what grants the
// right. It returns every other error unchanged.
func (c *Claim) ExplainTransaction(err error) error {
	if !errors.Is(err, kerr.TransactionalIDAuthorizationFailed) {
		return err
	}
	return &precondition.UnmetError{Finding: c.Config.Kafka.MissingTransactionRight(c.Lane, c.Limits.Bootstrap, err)}
}

// readLastEnd reads how the lane's last transaction has ended, before the fence, after which
// the coordinator does not know it any more. Nothing but endLostTransaction depends on the
// answer.
func (c *Claim) readLastEnd(ctx context.Context) topic.TransactionEnd {
	end, err := topic.ReadTransactionEnd(ctx, c.Client, c.Config.Kafka.TransactionalID(c.Lane))
	if err != nil {
		c.Config.Logger.Debug("the broker does not tell how the lane's last transaction has ended", "lane", c.Lane, "error", err)
	}
	return end
}

// readProgress reads K.
func (c *Claim) readProgress(ctx context.Context) error {
	k, err := topic.ReadProgress(ctx, c.ProgressReader())
	if lost, ok := errors.AsType[*topic.ProgressLostError](err); ok {
		c.ProgressLost, k, err = lost, c.ShippedBefore, nil // a lower bound of K; compareSinks halts
	}
	if err != nil {
		return c.explainUnread(err, c.Config.Kafka.Progress)
	}
	c.Shipped = k
	return nil
}

// ProgressReader returns a reader of the lane's partition of the progress topic.
func (c *Claim) ProgressReader() *fetch.PartitionReader {
	return &fetch.PartitionReader{Client: c.Client, NewClient: c.Config.Kafka.NewClient, Topic: c.Config.Kafka.Progress, TopicID: c.IDs.ProgressID, Partition: c.Lane}
}

// isOpenTransaction reports whether a read has stopped at a transaction that is open.
func isOpenTransaction(err error) bool {
	short, ok := errors.AsType[*fetch.ShortReadError](err)
	return ok && short.Stable < short.End
}

// endLostTransaction ends a transaction of the lane's own producer that is open on the
// progress partition after the fence, and fences again. It returns unread, with the open
// transaction, where that is another producer's or its end is not known.
func (c *Claim) endLostTransaction(ctx context.Context, unread error) error {
	kafka := c.Config.Kafka
	lost, ok, err := kafka.FindLostTransaction(ctx, c.Client, c.Lane)
	if err != nil || !ok {
		return errors.Join(kafka.ExplainOpenTransaction(unread, c.Client, kafka.Progress, c.Lane), err)
	}
	if err := kafka.EndLostTransaction(ctx, c.Client, c.Lane, lost, *c.opts.LastEnd); err != nil {
		return kafka.ExplainLostTransaction(unread, err, c.Client, c.Lane)
	}
	c.Config.Logger.Warn("the brokers had lost the end of a transaction; it has ended as its coordinator had decided",
		"lane", c.Lane, "topic", kafka.Progress, "offset", lost.CurrentTxnStartOffset, "committed", c.opts.LastEnd.Committed)
	topic.CloseClient(c.Client, c.Config.Logger, c.Lane)
	if err := c.openKafka(); err != nil {
		return err
	}
	if _, _, err := c.Client.ProducerID(ctx); err != nil { // it also waits until the markers are written
		return fmt.Errorf("fence the former producer of lane %d: %w", c.Lane, err)
	}
	if err := c.readProgress(ctx); err != nil {
		return kafka.ExplainOpenTransaction(err, c.Client, kafka.Progress, c.Lane)
	}
	return nil
}

// openKafka makes the Kafka client of the session: a transactional producer that also
// reads the lane's partition.
func (c *Claim) openKafka() (err error) {
	c.Client, err = c.Config.Kafka.NewProducer(c.Lane, c.Limits)
	return err
}

// DroppedRowsHalt is the halt for a feedback table that drops rows without an error, or
// stores other ones: which notifications it wants is unknown.
func (c *Claim) DroppedRowsHalt(what string) error {
	who, hint := "", "look for what keeps rows out of the table"
	if len(c.Feedback.Triggers) > 0 {
		who = "; its trigger " + strings.Join(c.Feedback.Triggers, ", ") + " runs before each row"
		hint = "have the trigger leave the ten columns of a notification alone and RAISE an exception for a row that it does not want (such clients are then left out), or drop it"
	}
	return &halt.Error{Part: halt.Stream, Lane: c.Lane, What: fmt.Sprintf("feedback table %s: %s%s", c.Tables.Feedback, what, who), Hint: hint + "; then start the daemon again"}
}
