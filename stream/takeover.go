package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/failpoint"
	"dinnerbell/internal/halt"
	"dinnerbell/internal/precondition"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/topic"
)

// takeoverTimeout bounds one takeover; the lane tries again.
const takeoverTimeout = 60 * time.Second

// ClaimConfig says how the two sinks of a deployment are reached, and bounds its
// steps.
type ClaimConfig struct {
	Sink   sink.Config
	Kafka  topic.Config
	Logger *slog.Logger // default: none

	// Window is w of K ≤ P ≤ K+w: how many steps may be decided and not yet
	// shipped; fewer where they hold more than three times StepBytes. Default 16.
	Window int
	// StepClients bounds the notifications of one step; a small campaign may exceed it
	// by a quarter. Default 2000.
	StepClients int
	// StepBytes bounds the bytes that one step sends to Postgres, and those of one
	// Kafka transaction; a single larger message still passes. Default 4 MiB.
	StepBytes int
	// SinkTimeout bounds each wait of a session for Postgres: nothing else on our side
	// notices a peer that has gone silent. Work that grows with the data gets ten
	// times as much. Default 30 s.
	SinkTimeout time.Duration
}

func (c ClaimConfig) withDefaults() ClaimConfig {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		field *int
		value int
	}{
		{&c.Window, 16}, {&c.StepClients, 2000}, {&c.StepBytes, 4 << 20},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if c.SinkTimeout <= 0 {
		c.SinkTimeout = 30 * time.Second
	}
	c.Kafka = c.Kafka.WithDefaults()
	return c
}

// claim is the ownership of a lane: the connections that a TAKEOVER has opened and the
// positions that it has read. The session does not change them.
type claim struct {
	lane int32
	cfg  ClaimConfig
	t    sink.Tables
	opts claimOptions
	step phaseWatch

	conn    *pgx.Conn            // to the sink; used by the committer alone
	counted bool                 // holds a token of opts.slots
	sql     *sink.StepStatements // prepared on conn
	ahead   time.Duration        // upper bound of how far our clock is ahead of Postgres'
	client  *kgo.Client          // the intake fetches with it, the shipper produces

	table    *sink.FeedbackTable // each step's transaction checks that the table is still this one
	ids      topic.IDs
	expected topic.Identity
	limits   topic.Limits

	epoch      int64
	seq        int64 // P
	shipped    int64 // K
	nextOffset int64
	totals     totals
	pending    []*record.Payload // decided and not shipped
	// Positions in Kafka that the last step wrote to Postgres: neither may be less now.
	shippedBefore int64
	endsBefore    []int64                  // of the notifications topic
	progressLost  *topic.ProgressLostError // set if the progress partition does not hold K
}

// totals are the lane's counters since its deployment began.
type totals struct{ notified, expired, dead int64 }

// claimOptions connect a takeover with its caller: the bound on connections, and the
// functions that show its progress.
type claimOptions struct {
	slots    chan struct{} // a token for each lane's own connection; nil: unbounded
	patience time.Duration // how long a phase may take before slow is called; 0: slow is never called
	waiting  func(error)   // called when the takeover waits for a slot; nil if slots is nil
	slow     func(step string, why error)
}

func newClaim(cfg ClaimConfig, lane int32, opts claimOptions) *claim {
	return &claim{lane: lane, cfg: cfg, t: cfg.Sink.Tables(), opts: opts}
}

// takeOver makes this process the lane's owner. The order is the protocol:
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
func takeOver(ctx context.Context, cfg ClaimConfig, lane int32, opts claimOptions) (_ *claim, err error) {
	ctx, cancel := context.WithTimeout(ctx, takeoverTimeout)
	defer cancel()
	c := newClaim(cfg, lane, opts)
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if opts.patience > 0 {
		defer c.step.watch(ctx, opts.patience, opts.slow)()
	}
	if err := c.connectSinks(ctx); err != nil {
		return nil, err
	}
	return c, c.confirmHalt(ctx, c.finishTakeover(ctx))
}

// close ends the claim's connections.
func (c *claim) close() {
	if c.conn != nil {
		sink.CloseConn(c.conn)
	}
	if c.counted {
		<-c.opts.slots
	}
	if c.client != nil {
		topic.CloseClient(c.client, c.cfg.Logger, c.lane)
	}
}

// finishTakeover does steps 2 to 5, after connectSinks.
func (c *claim) finishTakeover(ctx context.Context) (err error) {
	if err := c.checkTopics(); err != nil { // first: nothing must be fenced in a cluster that is not ours
		return err
	}
	if err := c.fencePredecessor(ctx); err != nil {
		return err
	}
	c.step.enter("compare the sinks", nil)
	if err := c.compareSinks(ctx); err != nil {
		return err
	}
	c.step.enter("load the outbox", nil)
	if c.pending, err = c.loadOutbox(ctx, c.shipped); err != nil {
		return err
	}
	failpoint.Hit("takeover/outbox-loaded")
	c.step.enter("check the input", nil)
	return c.checkInput(ctx)
}

// confirmHalt returns a halt only if the lane is still ours. If another owner has
// raised the epoch since, our positions of Postgres and of Kafka are of different
// moments, and their contradiction means nothing.
func (c *claim) confirmHalt(ctx context.Context, err error) error {
	if _, halted := errors.AsType[*halt.Error](err); !halted {
		return err
	}
	var epoch int64
	if err := c.conn.QueryRow(ctx, `SELECT epoch FROM `+c.t.Lane+` WHERE lane = $1`, c.lane).Scan(&epoch); err != nil {
		return fmt.Errorf("read epoch of lane %d: %w", c.lane, err)
	}
	if epoch != c.epoch {
		return fmt.Errorf("take lane %d over: %w", c.lane, sink.ErrTakenOver)
	}
	return err
}

// connectSinks does step 1 and makes the client of step 2. It also checks the
// preconditions.
func (c *claim) connectSinks(ctx context.Context) error {
	if err := c.openSink(ctx); err != nil {
		return err
	}
	c.step.enter(fmt.Sprintf("raise the epoch of lane %d in %s", c.lane, c.t.Lane), nil)
	if err := c.raiseEpoch(ctx); err != nil {
		return err
	}
	failpoint.Hit("takeover/epoch-raised")
	return c.openKafka()
}

// checkPreconditions makes the checks of a session, and keeps the facts that they have
// read: the topics' ids, the limits of their records, the feedback table.
func (c *claim) checkPreconditions(ctx context.Context) error {
	var found systemFacts
	report, err := readPreconditions(ctx, c.cfg, precondition.AtSession, c.conn, &found)
	if err := report.Unmet(err); err != nil {
		return err
	}
	c.ids = found.cluster.IDs(c.cfg.Kafka)
	c.limits = topic.NewLimits(found.cluster, c.cfg.Kafka)
	c.table = found.catalogue.Feedback
	return nil
}

func (c *claim) openSink(ctx context.Context) (err error) {
	if err := c.awaitConnection(ctx); err != nil {
		return err
	}
	c.step.enter("open the connection to the sink", nil)
	if c.conn, err = c.cfg.Sink.Connect(ctx, c.laneMark()+c.cfg.Kafka.InstanceID); err != nil {
		return err
	}
	if err := c.readySink(ctx); err != nil {
		return err
	}
	c.step.enter("check the preconditions", nil)
	if err := c.checkPreconditions(ctx); err != nil {
		return err
	}
	c.step.enter("end the former owners' connections to the sink", nil)
	c.sql = sink.NewStepStatements(c.t)
	if err := sink.Prepare(ctx, c.conn, c.sql.All()...); err != nil {
		return err
	}
	return c.endPredecessors(ctx)
}

// readySink sets the connection up for the lane's statements and compares the clocks.
func (c *claim) readySink(ctx context.Context) error {
	if err := sink.PlanByKeys(ctx, c.conn); err != nil {
		return err
	}
	skew, off, err := sink.ClockSkew(ctx, c.conn, time.Now)
	c.ahead = skew + off
	return err
}

// awaitConnection waits until sink.max_connections allows one more connection.
func (c *claim) awaitConnection(ctx context.Context) error {
	slots := c.opts.slots
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
	c.opts.waiting(err)
	select {
	case slots <- struct{}{}:
		c.counted = true
		return nil
	case <-ctx.Done():
		return err
	}
}

func (c *claim) raiseEpoch(ctx context.Context) error {
	row := func() error {
		return c.conn.QueryRow(ctx, `UPDATE `+c.t.Lane+` SET epoch = epoch + 1 WHERE lane = $1
RETURNING epoch, seq, next_offset, cluster_id, campaigns_topic_id, notifications_topic_id, progress_topic_id, shipped, notifications_ends, notified, expired, dead`, c.lane).
			Scan(&c.epoch, &c.seq, &c.nextOffset, &c.expected.Cluster, &c.expected.Campaigns, &c.expected.Notifications, &c.expected.Progress,
				&c.shippedBefore, &c.endsBefore, &c.totals.notified, &c.totals.expired, &c.totals.dead)
	}
	err := row()
	if errors.Is(err, pgx.ErrNoRows) { // a new partition
		if err = initLanes(ctx, c.cfg, c.conn); err == nil {
			err = row()
		}
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("there is no lane %d: topic %s has no such partition; `dinnerbell status` lists the lanes", c.lane, c.cfg.Kafka.Campaigns)
	}
	if err != nil {
		return fmt.Errorf("take lane %d in %s: %w", c.lane, c.t.Lane, err)
	}
	return nil
}

// fencePredecessor does steps 2 and 3: after InitProducerID nobody else can add to the
// lane's transactions, so the K that is read then is final.
func (c *claim) fencePredecessor(ctx context.Context) error {
	trouble := func(ctx context.Context) error {
		return topic.TransactionCoordinator(c.cfg.Kafka.TransactionalID(c.lane)).Diagnose(ctx, c.cfg.Kafka, c.client)
	}
	c.step.enter(fmt.Sprintf("fence the former producer of lane %d", c.lane), trouble)
	_, _, err := c.client.ProducerID(ctx)
	if errors.Is(err, kerr.TransactionalIDAuthorizationFailed) {
		return &precondition.UnmetError{Finding: c.cfg.Kafka.MissingTransactionRight(c.lane, c.limits.Bootstrap, err)}
	}
	if err != nil {
		return fmt.Errorf("fence the former producer of lane %d: %w", c.lane, err)
	}
	failpoint.Hit("takeover/fenced")
	c.step.enter(fmt.Sprintf("read the progress of lane %d from topic %s", c.lane, c.cfg.Kafka.Progress), nil)
	k, err := topic.ReadProgress(ctx, &topic.PartitionReader{Client: c.client, NewClient: c.cfg.Kafka.NewClient, Topic: c.cfg.Kafka.Progress, TopicID: c.ids.ProgressID, Partition: c.lane})
	if lost, ok := errors.AsType[*topic.ProgressLostError](err); ok {
		c.progressLost, k, err = lost, c.shippedBefore, nil // a lower bound of K; compareSinks halts
	}
	if err != nil {
		return err
	}
	c.shipped = k
	return nil
}

// openKafka makes the Kafka client of the session: a transactional producer that also
// reads the lane's partition.
func (c *claim) openKafka() (err error) {
	c.client, err = c.cfg.Kafka.NewProducer(c.lane, c.limits)
	return err
}

// droppedRowsHalt is the halt for a feedback table that drops rows without an error, or
// stores other ones: which notifications it wants is unknown.
func (c *claim) droppedRowsHalt(what string) error {
	who, hint := "", "look for what keeps rows out of the table"
	if len(c.table.Triggers) > 0 {
		who = "; its trigger " + strings.Join(c.table.Triggers, ", ") + " runs before each row"
		hint = "have the trigger leave the ten columns of a notification alone and RAISE an exception for a row that it does not want (such clients are then left out), or drop it"
	}
	return &halt.Error{Part: halt.Stream, Lane: c.lane, What: fmt.Sprintf("feedback table %s: %s%s", c.t.Feedback, what, who), Hint: hint + "; then start the daemon again"}
}
