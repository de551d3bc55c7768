package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/scripts/chaos/oracle"
)

// compareSinks reads both sinks and the dead letters and compares them with the
// oracle.
func (r *round) compareSinks(ctx context.Context, v *oracle.Verdict, settled time.Duration) error {
	conn, err := r.servers.connectPostgres(ctx, r.database)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	s := &oracle.Sinks{}
	if s.Rows, err = readFeedback(ctx, conn); err != nil {
		return err
	}
	if s.Records, err = r.servers.readTopic(ctx, r.topics.notifications); err != nil {
		return err
	}
	if s.DeadLetters, err = r.servers.readTopic(ctx, r.topics.dead); err != nil {
		return err
	}
	sent, err := r.servers.readTopic(ctx, r.topics.campaigns)
	if err != nil {
		return err
	}
	o := oracle.NewOracle(r.log, oracle.NewTimelines(r.startRows, r.log.Transactions), settled)
	if r.notifiesLateSubscribers() {
		o.ExpectLate(r.lateSince)
	}
	sent = r.withDeleted(sent)
	if err := r.addMessages(o, sent); err != nil {
		return err
	}
	v.Check(o, s)
	if v.Failed() || r.recovery > r.servers.opts.slow {
		return r.writeDump(v, s, sent)
	}
	return nil
}

// withDeleted adds the records that the round has deleted from the topic.
func (r *round) withDeleted(sent []*kgo.Record) []*kgo.Record {
	there := map[oracle.RecordPosition]bool{}
	for _, rec := range sent {
		there[oracle.RecordPosition{Partition: rec.Partition, Offset: rec.Offset}] = true
	}
	for at, rec := range r.deleted {
		if !there[at] {
			sent = append(sent, rec)
		}
	}
	return sent
}

// addMessages gives the oracle the messages that the topic holds. A message
// whose acknowledgement was lost may be in the topic once, twice or not at all.
func (r *round) addMessages(o *oracle.Oracle, sent []*kgo.Record) error {
	at := map[oracle.RecordPosition]bool{}
	for _, rec := range sent {
		n, err := strconv.ParseInt(oracle.Header(rec, numberHeader), 10, 64)
		m := r.log.Messages[n]
		if err != nil || m == nil {
			return fmt.Errorf("read campaigns: the record at %d/%d is not ours", rec.Partition, rec.Offset)
		}
		p := oracle.RecordPosition{Partition: rec.Partition, Offset: rec.Offset}
		at[p] = true
		o.AddMessage(m, p)
	}
	for _, m := range r.log.Messages {
		if m.Acked && !at[oracle.RecordPosition{Partition: m.Partition, Offset: m.Offset}] {
			return fmt.Errorf("read campaigns: the broker has lost message %d at %d/%d", m.Number, m.Partition, m.Offset)
		}
	}
	o.Seal()
	return nil
}

// writeDump writes both sinks, the topics and the verdict to the round's
// folder, for the search for a cause.
func (r *round) writeDump(v *oracle.Verdict, s *oracle.Sinks, sent []*kgo.Record) error {
	type record struct {
		Partition int32     `json:"partition"`
		Offset    int64     `json:"offset"`
		Time      time.Time `json:"time"`
		Producer  int64     `json:"producer"`
		Epoch     int16     `json:"epoch"`
		Key       string    `json:"key"`
		Value     string    `json:"value"`
	}
	lines := func(name string, n int, at func(int) any) error {
		f, err := os.Create(filepath.Join(r.dir, name))
		if err != nil {
			return err
		}
		enc := json.NewEncoder(f)
		for i := range n {
			if err := enc.Encode(at(i)); err != nil {
				return errors.Join(err, f.Close())
			}
		}
		return f.Close()
	}
	topic := func(name string, list []*kgo.Record) error {
		return lines(name, len(list), func(i int) any {
			l := list[i]
			return record{l.Partition, l.Offset, l.Timestamp, l.ProducerID, l.ProducerEpoch, string(l.Key), string(l.Value)}
		})
	}
	return errors.Join(
		lines("verdict.json", 1, func(int) any { return v }),
		lines("feedback.jsonl", len(s.Rows), func(i int) any { return s.Rows[i] }),
		topic("notifications.jsonl", s.Records), topic("dead.jsonl", s.DeadLetters), topic("campaigns.jsonl", sent),
	)
}

// keepFolder copies the round's folder, without the local states, and the
// servers' logs, and prints the command that runs the round again.
func (r *round) keepFolder() error {
	o := r.servers.opts
	dir := filepath.Join(o.keep, fmt.Sprintf("%s-seed%d-round%d", o.broker, o.seed, r.number))
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	var errs []error
	for _, d := range r.daemons {
		errs = append(errs, os.RemoveAll(d.dir), os.RemoveAll(d.dir+".old"))
	}
	errs = append(errs, copyDir(r.dir, dir))
	for _, log := range []string{"postgres/postgres.log", "broker/broker.log", "broker/kafka.log"} {
		if text, err := os.ReadFile(filepath.Join(r.servers.dir, log)); err == nil {
			errs = append(errs, os.WriteFile(filepath.Join(dir, filepath.Base(log)), text, 0o600))
		}
	}
	fmt.Printf("  kept in %s; again: %s\n", dir, o.rerunCommand(r.number))
	return errors.Join(errs...)
}

// rerunCommand returns the command that runs one round with the same schedule.
func (o *options) rerunCommand(round int) string {
	if o.soak > 0 {
		return fmt.Sprintf("make soak MINUTES=%d SEED=%d BROKER=%s", o.soak, o.seed, o.broker)
	}
	return fmt.Sprintf("make chaos ROUNDS=1 FIRST=%d SEED=%d BROKER=%s DAEMONS=%d LENGTH=%d FAULTS=%d", round, o.seed, o.broker, o.daemons, o.seconds, o.faults)
}
