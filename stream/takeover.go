package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/failpoint"
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
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	return s, s.confirm(ctx, s.settle(ctx))
}

func (l *lane) newSession() *session {
	return &session{lane: l, cfg: l.svc.cfg, t: l.svc.cfg.Sink.tables(), agenda: newAgenda()}
}

// settle is steps 2 to 5, after connect.
func (s *session) settle(ctx context.Context) (err error) {
	if err := s.checkTopics(); err != nil { // before anything is fenced in a cluster that is not ours
		return err
	}
	if err := s.fence(ctx); err != nil {
		return err
	}
	if err := s.checkSinks(ctx); err != nil {
		return err
	}
	if s.pending, err = s.loadOutbox(ctx, s.shipped.Load()); err != nil {
		return err
	}
	failpoint.Hit("takeover/outbox-loaded")
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

// connect is step 1 and the client of step 2: it raises the epoch and reads
// which topics are there.
func (s *session) connect(ctx context.Context) error {
	if err := s.openSink(ctx); err != nil {
		return err
	}
	if err := s.raiseEpoch(ctx); err != nil {
		return err
	}
	s.ends.raise(s.topicEnds)
	failpoint.Hit("takeover/epoch-raised")
	if err := s.openKafka(ctx); err != nil {
		return err
	}
	ids, topics, err := readTopicIDs(ctx, s.client, s.cfg.Kafka)
	if err != nil {
		return err
	}
	s.ids = ids
	if n := len(topics[s.cfg.Kafka.Progress].Partitions); n <= int(s.lane.id) {
		return fmt.Errorf("topic %s has %d partitions, fewer than topic %s; run `dinnerbell setup`", s.cfg.Kafka.Progress, n, s.cfg.Kafka.Campaigns)
	}
	return nil
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
	name := fmt.Sprintf("dinnerbell %s lane %d", s.cfg.Kafka.InstanceID, s.lane.id)
	if s.sink, err = s.cfg.Sink.connect(ctx, name); err != nil {
		return err
	}
	if err := s.readySink(ctx); err != nil {
		return err
	}
	if s.reader, err = s.cfg.Sink.connect(ctx, name+" reader"); err != nil {
		return err
	}
	if _, err := s.reader.Exec(ctx, laneSettings, pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("set up sink session: %w", err)
	}
	if err := checkLayout(ctx, s.sink, s.t); err != nil {
		return err
	}
	index, err := uniqueIndex(ctx, s.sink, s.t)
	if err != nil {
		return err
	}
	if index == "" {
		return fmt.Errorf("feedback table %s has no valid unique index on (adv_campaign_id, client_id); run `dinnerbell setup`", s.t.feedback)
	}
	s.sql = newStepStatements(s.t)
	if err := prepare(ctx, s.sink, s.sql.all()...); err != nil {
		return err
	}
	return s.endPredecessors(ctx)
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

// maxBatch caps what a topic that takes huge messages lets through: a request
// must stay under Kafka's socket.request.max.bytes, 100 MiB by default.
const maxBatch = 64 << 20

// fence is steps 2 and 3: after InitProducerID nobody else can add to the
// lane's transactions, so the K that is read is final.
func (s *session) fence(ctx context.Context) error {
	if _, _, err := s.client.ProducerID(ctx); err != nil {
		return fmt.Errorf("fence the former producer of lane %d: %w", s.lane.id, err)
	}
	failpoint.Hit("takeover/fenced")
	k, err := readProgress(ctx, s.client, s.cfg.Kafka.Progress, s.ids.progress, s.lane.id)
	if err != nil {
		return err
	}
	s.shipped.Store(k)
	return nil
}

// openKafka makes the one client of the session: transactional producer and
// direct consumer of the lane's partition.
func (s *session) openKafka(ctx context.Context) error {
	opts, err := s.cfg.Kafka.Client()
	if err != nil {
		return fmt.Errorf("read kafka settings: %w", err)
	}
	if err := s.readLimits(ctx, opts); err != nil {
		return err
	}
	sticky, manual := kgo.StickyKeyPartitioner(nil), kgo.ManualPartitioner()
	s.client, err = kgo.NewClient(append(opts,
		kgo.TransactionalID(fmt.Sprintf("%s-%d", s.cfg.Kafka.Group, s.lane.id)),
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
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{s.cfg.Kafka.Campaigns: {s.lane.id: kgo.NewOffset().At(s.nextOffset)}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxBytes(8<<20),
		kgo.FetchMaxPartitionBytes(4<<20),
	)...)
	if err != nil {
		return fmt.Errorf("make kafka client: %w", err)
	}
	s.client.PauseFetchTopics(s.cfg.Kafka.Campaigns) // until the takeover is complete
	return nil
}

// readLimits learns how large a record may be before the producer is made.
func (s *session) readLimits(ctx context.Context, opts []kgo.Opt) error {
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("make kafka client: %w", err)
	}
	defer client.Close()
	adm := kadm.NewClient(client)
	if s.recordLimit, err = maxMessageBytes(ctx, adm, s.cfg.Kafka.Notifications); err != nil {
		return err
	}
	s.deadLimit, err = maxMessageBytes(ctx, adm, s.cfg.Kafka.DeadLetters)
	s.recordLimit, s.deadLimit = min(s.recordLimit, maxBatch), min(s.deadLimit, maxBatch)
	return err
}

// topicIDs are what the lane's positions count in, as text for Postgres, and
// the progress topic's id as fetch requests need it.
type topicIDs struct {
	cluster, campaigns, notifications string
	progressText                      string
	progress                          kadm.TopicID
}

// knownIDs are those that the lane row was made with.
type knownIDs struct{ cluster, campaigns, notifications, progress string }

// readTopicIDs reads the identity of the cluster and of the three topics.
func readTopicIDs(ctx context.Context, client *kgo.Client, cfg KafkaConfig) (topicIDs, kadm.TopicDetails, error) {
	meta, err := kadm.NewClient(client).Metadata(ctx, cfg.Campaigns, cfg.Notifications, cfg.Progress)
	if err != nil {
		return topicIDs{}, nil, fmt.Errorf("read kafka metadata: %w", err)
	}
	for _, topic := range []string{cfg.Campaigns, cfg.Notifications, cfg.Progress} {
		if d, ok := meta.Topics[topic]; !ok || d.Err != nil {
			return topicIDs{}, nil, fmt.Errorf("topic %s: %w; `dinnerbell setup` creates topics that are missing", topic, d.Err)
		}
	}
	return topicIDs{
		cluster:       meta.Cluster,
		campaigns:     meta.Topics[cfg.Campaigns].ID.String(),
		notifications: meta.Topics[cfg.Notifications].ID.String(),
		progressText:  meta.Topics[cfg.Progress].ID.String(),
		progress:      meta.Topics[cfg.Progress].ID,
	}, meta.Topics, nil
}

type partitionerFunc func(topic string) kgo.TopicPartitioner

// ForTopic implements kgo.Partitioner.
func (f partitionerFunc) ForTopic(topic string) kgo.TopicPartitioner { return f(topic) }
