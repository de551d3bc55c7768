package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/failpoint"
	"dinnerbell/internal/precondition"
)

// transactionTimeout bounds how long a dead owner's open transaction can hold
// up read_committed consumers, where nobody takes the lane over before.
const transactionTimeout = 20 * time.Second

// takeoverTimeout bounds one attempt; the lane tries again.
const takeoverTimeout = 60 * time.Second

// takeover makes this process the lane's owner. The order is the protocol:
//
//  1. Postgres: end the predecessor's connections and raise the epoch. It waits
//     for a predecessor's transaction on the lane row; the predecessor's next
//     step misses its compare-and-swap.
//  2. Kafka: a new client, InitProducerID. That fences the predecessor and
//     aborts what it left open.
//  3. Read K from the progress topic. Nothing can add to it any more.
//  4. K ≤ P, and the outbox holds (K, P]; otherwise a sink was rolled back
//     behind our progress, and the lane halts (rollback.go).
//  5. Load the outbox above K. Campaigns are loaded by the intake (agenda.go);
//     input is read from next_offset.
//
// On error nothing is held and nothing has changed but the epoch.
func (l *lane) takeover(ctx context.Context) (_ *session, err error) {
	ctx, cancel := context.WithTimeout(ctx, takeoverTimeout)
	defer cancel()
	s := l.newSession()
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	defer s.step.watch(ctx, l.svc.stepPatience, l.showSlowStep)()
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	return s, s.confirm(ctx, s.settle(ctx))
}

func (l *lane) newSession() *session {
	return &session{lane: l, cfg: l.svc.cfg, t: l.svc.cfg.Sink.tables(), agenda: newAgenda(l.svc.agendaLimit)}
}

// settle is steps 2 to 5, after connect.
func (s *session) settle(ctx context.Context) (err error) {
	if err := s.checkTopics(); err != nil { // before anything is fenced in a cluster that is not ours
		return err
	}
	if err := s.fence(ctx); err != nil {
		return err
	}
	s.step.enter("compare the sinks", nil)
	if err := s.checkSinks(ctx); err != nil {
		return err
	}
	s.step.enter("load the outbox", nil)
	if s.pending, err = s.loadOutbox(ctx, s.shipped.Load()); err != nil {
		return err
	}
	failpoint.Hit("takeover/outbox-loaded")
	s.step.enter("check the input", nil)
	return s.checkInput(ctx)
}

// confirm lets a halt pass only if the lane is still ours. If another owner has
// raised the epoch since, what we read of Postgres and what we read of Kafka
// are of different moments, and their contradiction means nothing.
func (s *session) confirm(ctx context.Context, err error) error {
	if _, halted := errors.AsType[*HaltError](err); !halted {
		return err
	}
	var epoch int64
	if err := s.sink.QueryRow(ctx, `SELECT epoch FROM `+s.t.lane+` WHERE lane = $1`, s.lane.id).Scan(&epoch); err != nil {
		return fmt.Errorf("read epoch of lane %d: %w", s.lane.id, err)
	}
	if epoch != s.epoch {
		return fmt.Errorf("take lane %d over: %w", s.lane.id, errTakenOver)
	}
	return err
}

// connect is step 1 and the client of step 2: it checks the preconditions and
// raises the epoch.
func (s *session) connect(ctx context.Context) error {
	if err := s.openSink(ctx); err != nil {
		return err
	}
	s.step.enter(fmt.Sprintf("raise the epoch of lane %d in %s", s.lane.id, s.t.lane), nil)
	if err := s.raiseEpoch(ctx); err != nil {
		return err
	}
	s.ends.raise(s.topicEnds)
	failpoint.Hit("takeover/epoch-raised")
	return s.openKafka()
}

// checkPreconditions makes the session's checks, and keeps what they have read of
// the cluster: the topics' ids and how large a record may be.
func (s *session) checkPreconditions(ctx context.Context) error {
	var found facts
	if err := met(readPreconditions(ctx, s.cfg, precondition.AtSession, s.sink, &found)); err != nil {
		return err
	}
	s.ids = found.cluster.ids(s.cfg.Kafka)
	s.setLimits(found.cluster)
	s.table = found.catalogue.feedback
	return nil
}

func (s *session) setLimits(c *cluster) {
	s.bootstrap = c.bootstrap
	s.guessed = slices.DeleteFunc([]string{s.cfg.Kafka.Notifications, s.cfg.Kafka.DeadLetters}, func(topic string) bool { return c.settings[topic] != nil })
	s.recordLimit, s.deadLimit = c.settings[s.cfg.Kafka.Notifications].maxMessage(), c.settings[s.cfg.Kafka.DeadLetters].maxMessage()
}

// laneSettings have each statement planned once per session, and by keys: what a
// lane asks for is always a few rows by their key, and a plan that was made
// while the tables were empty must not stay a scan of them when they are large.
const laneSettings = `
SET plan_cache_mode = force_generic_plan;
SET enable_seqscan = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET jit = off`

func (s *session) openSink(ctx context.Context) (err error) {
	if err := s.awaitConnection(ctx); err != nil {
		return err
	}
	s.step.enter("open the connection to the sink", nil)
	if s.sink, err = s.cfg.Sink.connect(ctx, s.laneMark()+s.cfg.Kafka.InstanceID); err != nil {
		return err
	}
	if err := s.readySink(ctx); err != nil {
		return err
	}
	s.reader = s.lane.svc.readers.open()
	s.step.enter("check the preconditions", nil)
	if err := s.checkPreconditions(ctx); err != nil {
		return err
	}
	s.step.enter("end the former owners' connections to the sink", nil)
	s.sql = newStepStatements(s.t)
	if err := prepare(ctx, s.sink, s.sql.all()...); err != nil {
		return err
	}
	return s.endPredecessors(ctx)
}

// awaitConnection waits until sink.max_connections allows a connection more.
func (s *session) awaitConnection(ctx context.Context) error {
	steps := s.lane.svc.steps
	if steps == nil {
		return nil
	}
	select {
	case steps <- struct{}{}:
		s.counted = true
		return nil
	default:
	}
	err := fmt.Errorf("the %d connections that sink.max_connections leaves to lanes are in use by others; raise it, or run another daemon of the group", cap(steps))
	s.lane.setState("takeover", err)
	select {
	case steps <- struct{}{}:
		s.counted = true
		return nil
	case <-ctx.Done():
		return err
	}
}

func (s *session) raiseEpoch(ctx context.Context) error {
	row := func() error {
		return s.sink.QueryRow(ctx, `UPDATE `+s.t.lane+` SET epoch = epoch + 1 WHERE lane = $1
RETURNING epoch, seq, next_offset, cluster_id, campaigns_topic_id, notifications_topic_id, progress_topic_id, shipped, notifications_ends, notified, expired, dead`, s.lane.id).
			Scan(&s.epoch, &s.seq, &s.nextOffset, &s.known.cluster, &s.known.campaigns, &s.known.notifications, &s.known.progress,
				&s.shippedBefore, &s.topicEnds, &s.totals.notified, &s.totals.expired, &s.totals.dead)
	}
	err := row()
	if errors.Is(err, pgx.ErrNoRows) { // a partition that is new to us
		if err = initLanes(ctx, s.cfg, s.sink); err == nil {
			err = row()
		}
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("there is no lane %d: topic %s has no such partition; `dinnerbell status` lists the lanes", s.lane.id, s.cfg.Kafka.Campaigns)
	}
	if err != nil {
		return fmt.Errorf("take lane %d in %s: %w", s.lane.id, s.t.lane, err)
	}
	return nil
}

// fence is steps 2 and 3: after InitProducerID nobody else can add to the
// lane's transactions, so the K that is read is final.
func (s *session) fence(ctx context.Context) error {
	trouble := func(ctx context.Context) error {
		return transactionCoordinator(s.transactionalID()).trouble(ctx, s.cfg.Kafka, s.client)
	}
	s.step.enter(fmt.Sprintf("fence the former producer of lane %d", s.lane.id), trouble)
	_, _, err := s.client.ProducerID(ctx)
	if errors.Is(err, kerr.TransactionalIDAuthorizationFailed) {
		return s.transactionRefused(err)
	}
	if err != nil {
		return fmt.Errorf("fence the former producer of lane %d: %w", s.lane.id, err)
	}
	failpoint.Hit("takeover/fenced")
	s.step.enter(fmt.Sprintf("read the progress of lane %d from topic %s", s.lane.id, s.cfg.Kafka.Progress), nil)
	k, err := readProgress(ctx, &partitionReader{client: s.client, options: s.cfg.Kafka.Client, topic: s.cfg.Kafka.Progress, topicID: s.ids.progress, partition: s.lane.id})
	if lost, ok := errors.AsType[*progressLostError](err); ok {
		s.progressLost, k, err = lost, s.shippedBefore, nil // at least; checkSinks halts
	}
	if err != nil {
		return err
	}
	s.shipped.Store(k)
	return nil
}

func (s *session) transactionalID() string {
	return fmt.Sprintf("%s-%d", s.cfg.Kafka.Group, s.lane.id)
}

// openKafka makes the one client of the session: a transactional producer, over
// which the lane's partition is read as well.
func (s *session) openKafka() error {
	opts, err := s.cfg.Kafka.Client()
	if err != nil {
		return fmt.Errorf("read kafka settings: %w", err)
	}
	sticky, manual := kgo.StickyKeyPartitioner(nil), kgo.ManualPartitioner()
	s.client, err = kgo.NewClient(append(opts,
		kgo.TransactionalID(s.transactionalID()),
		kgo.TransactionTimeout(transactionTimeout),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(transactionTimeout), // nothing but full batches leaves before Flush: fewer requests
		kgo.MaxBufferedRecords(1<<17),
		kgo.ProducerBatchMaxBytesFn(func(topic string) int32 {
			if topic == s.cfg.Kafka.DeadLetters {
				return int32(s.deadLimit)
			}
			return int32(s.recordLimit)
		}),
		kgo.RecordPartitioner(partitionerFunc(func(topic string) kgo.TopicPartitioner {
			if topic == s.cfg.Kafka.Progress {
				return manual.ForTopic(topic)
			}
			return sticky.ForTopic(topic)
		})),
	)...)
	if err != nil {
		return fmt.Errorf("make kafka client: %w", err)
	}
	return nil
}

type partitionerFunc func(topic string) kgo.TopicPartitioner

// ForTopic implements kgo.Partitioner.
func (f partitionerFunc) ForTopic(topic string) kgo.TopicPartitioner { return f(topic) }
