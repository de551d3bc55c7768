package operator

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/precondition"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
	"dinnerbell/stream/topic/fetch"
)

// Finding is the result of one check of Audit.
type Finding struct {
	Lane int32  `json:"lane"`
	OK   bool   `json:"ok"`
	What string `json:"what"`
}

// Audit checks the invariants of every lane from the outside, read-only, with
// or without running daemons:
//
//   - K ≤ P ≤ K + window;
//   - the outbox is contiguous up to P and holds (K, P];
//   - every client of every outbox row has exactly that row in the feedback table;
//   - of the outbox rows, those up to K have each record once in the
//     notifications topic, and those above K have none.
//
// A daemon that works meanwhile moves P and K; Audit reads them in an order in which
// the checks hold all the same.
func Audit(ctx context.Context, cfg takeover.Config) ([]Finding, error) {
	a := &auditor{cfg: cfg.WithDefaults(), t: cfg.Sink.Tables()}
	conn, err := cfg.Sink.Connect(ctx, "dinnerbell audit")
	if err != nil {
		return nil, err
	}
	defer sink.CloseConn(conn)
	client, err := cfg.Kafka.NewClient()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	a.conn, a.client = conn, client
	found, err := sink.ReadCatalogue(ctx, conn, a.t)
	if err != nil {
		return nil, err
	}
	report, err := precondition.Run(ctx, sink.ReadingPreconditions, precondition.AtSession, &sink.Facts{Cfg: cfg.Sink, T: a.t, Conn: conn, Catalogue: found})
	if err := report.Unmet(err); err != nil {
		return nil, err
	}
	if err := found.Report().Unmet(nil); err != nil {
		return nil, err
	}
	a.table = found.Feedback
	if a.ids, _, err = topic.ReadIDs(ctx, client, cfg.Kafka, "Read"); err != nil {
		return nil, err
	}
	lanes, err := a.t.ReadLaneOffsets(ctx, conn, a.ids.Cluster, a.ids.Campaigns)
	if err != nil {
		return nil, err
	}
	for _, l := range lanes {
		if err := a.checkLane(ctx, l.Lane); err != nil {
			return a.findings, fmt.Errorf("audit lane %d: %w", l.Lane, err)
		}
	}
	return a.findings, nil
}

// auditor is one run of Audit.
type auditor struct {
	cfg      takeover.Config
	t        sink.Tables
	conn     *pgx.Conn
	table    *sink.FeedbackTable
	client   *kgo.Client
	ids      topic.IDs
	findings []Finding
}

// addFinding notes the result of one check.
func (a *auditor) addFinding(lane int32, ok bool, format string, args ...any) { //nolint:goprintffuncname // go vet knows a printf wrapper by its body; the callers make sentences
	a.findings = append(a.findings, Finding{Lane: lane, OK: ok, What: fmt.Sprintf(format, args...)})
}

// checkLane checks one lane. It reads K before and after the snapshot of Postgres, so that
// the steps of the snapshot were shipped between the two readings, or are not shipped yet.
func (a *auditor) checkLane(ctx context.Context, lane int32) error {
	before, err := a.readProgress(ctx, lane)
	if err != nil {
		return err
	}
	p, outbox, err := a.readSnapshot(ctx, lane)
	if err != nil {
		return err
	}
	after, err := a.readProgress(ctx, lane)
	if err != nil {
		return err
	}
	window := int64(a.cfg.Window)
	if before <= p {
		a.addFinding(lane, true, "every step that Kafka has is in Postgres: %d steps are in Kafka, %d in Postgres", before, p)
	} else {
		a.addFinding(lane, false, "Kafka has steps that Postgres does not have: %d steps are in Kafka, %d in Postgres; Postgres was rolled back", before, p)
	}
	if p <= after+window {
		a.addFinding(lane, true, "Kafka is at most %d steps behind Postgres: %d behind", window, max(p-after, 0))
	} else {
		a.addFinding(lane, false, "Kafka is %d steps behind Postgres, more than the %d that a lane may be; Kafka was rolled back", p-after, window)
	}
	a.checkOutbox(lane, before, p, outbox)
	if len(outbox) == 0 {
		return nil
	}
	if err := a.checkFeedback(ctx, lane, outbox); err != nil {
		return err
	}
	return a.checkRecords(ctx, lane, outbox, before, after)
}

// readProgress reads K while the lane's producer may be at work: up to the last stable
// offset, because an open transaction is not progress yet.
func (a *auditor) readProgress(ctx context.Context, lane int32) (int64, error) {
	var err error
	for range 20 { // each try may meet another open transaction
		var k int64
		if k, err = topic.ReadProgress(ctx, &fetch.PartitionReader{Client: a.client, NewClient: a.cfg.Kafka.NewClient, Topic: a.cfg.Kafka.Progress, TopicID: a.ids.ProgressID, Partition: lane}); err == nil {
			return k, nil
		}
		if errors.Is(err, kerr.TopicAuthorizationFailed) {
			return 0, topic.NameBrokers(a.client, a.explainUnread(err, a.cfg.Kafka.Progress))
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return 0, topic.NameBrokers(a.client, errors.Join(err, ctx.Err()))
		}
	}
	return 0, topic.NameBrokers(a.client, a.cfg.Kafka.ExplainOpenTransaction(err, a.client, a.cfg.Kafka.Progress, lane))
}

// readSnapshot reads P and the outbox as of one moment.
func (a *auditor) readSnapshot(ctx context.Context, lane int32) (p int64, outbox []*record.Payload, err error) {
	err = pgx.BeginTxFunc(ctx, a.conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if p, err = a.t.ReadDecided(ctx, tx, lane); err != nil {
			return err
		}
		outbox, err = a.t.ReadOutbox(ctx, tx, lane, -1)
		return err
	})
	return p, outbox, err
}

// checkOutbox checks that the outbox is contiguous up to P and holds every step above K.
func (a *auditor) checkOutbox(lane int32, k, p int64, outbox []*record.Payload) {
	next := p + 1 - int64(len(outbox))
	for _, o := range outbox {
		if o.Seq != next {
			a.addFinding(lane, false, "the outbox holds step %d where step %d belongs; it must be without a gap up to step %d", o.Seq, next, p)
			return
		}
		next++
	}
	if missing := p - int64(len(outbox)) - k; missing > 0 {
		a.addFinding(lane, false, "the outbox lacks %d steps that Kafka does not have", missing)
		return
	}
	a.addFinding(lane, true, "the outbox has every step that Kafka does not have yet, without a gap: it holds %d steps", len(outbox))
}

// checkFeedback looks every client of the outbox up in the feedback table.
func (a *auditor) checkFeedback(ctx context.Context, lane int32, outbox []*record.Payload) error {
	missing, total := int64(0), 0
	for _, o := range outbox {
		for i := range o.Segments {
			n, err := a.table.CountMissing(ctx, a.conn, &o.Segments[i])
			if err != nil {
				return err
			}
			missing += n
			total += o.Segments[i].Clients.Len()
		}
	}
	if missing == 0 {
		a.addFinding(lane, true, "each of the %d notifications in the outbox has its feedback row", total)
		return nil
	}
	a.addFinding(lane, false, "of %d notifications in the outbox, %d have no feedback row", total, missing)
	return nil
}

// checkRecords counts the records of the outbox's steps in the notifications topic, from
// one minute before the first of these steps was decided. The records of steps between the
// two readings of K may be there or not.
func (a *auditor) checkRecords(ctx context.Context, lane int32, outbox []*record.Payload, before, after int64) error {
	seen, since := map[string]int{}, int64(math.MaxInt64)
	for _, o := range outbox {
		for _, seg := range o.Segments {
			since = min(since, seg.Trigger)
			w := record.NewTemplate(seg.Campaign, seg.Trigger)
			for i := range seg.Clients.Len() {
				key, keyEnd, _ := w.AppendRecord(nil, seg.Clients.At(i))
				seen[string(key[:keyEnd])] = 0
			}
		}
	}
	if len(seen) == 0 {
		return nil
	}
	if err := a.countRecords(ctx, time.Unix(since, 0).Add(-time.Minute), seen); err != nil {
		return err
	}
	missing, doubled, early := 0, 0, 0
	for _, o := range outbox {
		for _, seg := range o.Segments {
			w := record.NewTemplate(seg.Campaign, seg.Trigger)
			for i := range seg.Clients.Len() {
				key, keyEnd, _ := w.AppendRecord(nil, seg.Clients.At(i))
				switch n := seen[string(key[:keyEnd])]; {
				case n > 1:
					doubled++
				case n == 0 && o.Seq <= before:
					missing++
				case n == 1 && o.Seq > after:
					early++
				}
			}
		}
	}
	if missing+doubled+early == 0 {
		a.addFinding(lane, true, "topic %s has each of them once if its step is shipped, and not at all otherwise", a.cfg.Kafka.Notifications)
		return nil
	}
	a.addFinding(lane, false, "of their records in topic %s, %d are missing, %d doubled, %d there before they are shipped", a.cfg.Kafka.Notifications, missing, doubled, early)
	return nil
}

// countRecords counts, for the keys of seen, the committed records since a time.
func (a *auditor) countRecords(ctx context.Context, since time.Time, seen map[string]int) error {
	adm := kadm.NewClient(a.client)
	starts, err := adm.ListOffsetsAfterMilli(ctx, since.UnixMilli(), a.cfg.Kafka.Notifications)
	if err != nil {
		return topic.NameBrokers(a.client, fmt.Errorf("list offsets of topic %s: %w", a.cfg.Kafka.Notifications, a.explainUnread(err, a.cfg.Kafka.Notifications)))
	}
	ends, err := adm.ListCommittedOffsets(ctx, a.cfg.Kafka.Notifications)
	if err != nil {
		return topic.NameBrokers(a.client, fmt.Errorf("list offsets of topic %s: %w", a.cfg.Kafka.Notifications, a.explainUnread(err, a.cfg.Kafka.Notifications)))
	}
	details, err := adm.ListTopics(ctx, a.cfg.Kafka.Notifications)
	if err != nil {
		return a.cfg.Kafka.ExplainUndescribed(err, a.client, "Read", a.cfg.Kafka.Notifications)
	}
	id := details[a.cfg.Kafka.Notifications].ID
	var failed error
	starts.Each(func(o kadm.ListedOffset) {
		end, ok := ends.Lookup(o.Topic, o.Partition)
		if err := errors.Join(failed, o.Err, end.Err); err != nil || !ok {
			failed = topic.NameBrokers(a.client, a.explainUnread(err, o.Topic))
			return
		}
		p := fetch.PartitionReader{Client: a.client, NewClient: a.cfg.Kafka.NewClient, Topic: o.Topic, TopicID: id, Partition: o.Partition}
		failed = p.ReadRange(ctx, max(o.Offset, 0), end.Offset, func(r *fetch.Record) error { // a record that cannot be read is not the lane's
			if _, ours := seen[string(r.Key)]; ours {
				seen[string(r.Key)]++
			}
			return nil
		})
		failed = topic.NameBrokers(a.client, a.explainUnread(failed, o.Topic))
	})
	return failed
}

// explainUnread adds to an error about a topic that may not be read what grants the right.
func (a *auditor) explainUnread(err error, topic string) error {
	return a.cfg.Kafka.ExplainDenied(err, a.client, "Read", topic)
}
