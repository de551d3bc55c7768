package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

const (
	pollRecords  = 500 // campaigns per poll
	lookUps      = 64  // SELECTs per round trip
	chunkRows    = 2000
	writers      = 3 // concurrent INSERTs
	sessionLimit = 10 * time.Second
)

// polledBatch holds the records of one poll. Their offsets may be committed
// after the delivery of all their notifications.
type polledBatch struct {
	records []*kgo.Record
	open    sync.WaitGroup // one per notification, and one for the reader
}

// consumer is the pipeline: poll → look up → insert (three) → produce → commit
// offsets. Any error ends the pipeline; a restart begins at the last committed
// offsets.
type consumer struct {
	client  *kgo.Client
	topic   string
	chunks  chan *rowChunk
	batches chan *polledBatch // in the order of polls, waiting for their delivery
	failed  chan error        // the first error of a produce
}

// runConsumer runs until ctx ends or a step fails.
func runConsumer(ctx context.Context, o options) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(o.broker),
		kgo.ConsumerGroup(o.group), kgo.InstanceID(o.group), // static membership: a restart gets its partitions at once
		kgo.SessionTimeout(sessionLimit),
		kgo.ConsumeTopics(o.campaigns),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.AutoCommitMarks(), kgo.AutoCommitInterval(time.Second),
		kgo.ProducerLinger(0),
		kgo.MaxBufferedRecords(1<<17),
	)
	if err != nil {
		return fmt.Errorf("make kafka client: %w", err)
	}
	defer client.Close()
	c := &consumer{client: client, topic: o.notifications,
		chunks: make(chan *rowChunk, writers), batches: make(chan *polledBatch, 8), failed: make(chan error, 1)}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.readCampaigns(ctx, o.postgres) })
	for range writers {
		g.Go(func() error { return c.writeChunks(ctx, o.postgres) })
	}
	g.Go(func() error { return c.markCommitted(ctx) })
	g.Go(func() error {
		select {
		case err := <-c.failed:
			return fmt.Errorf("produce: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return g.Wait()
}

// connectPostgres opens a connection; an INSERT on it is durable when it
// returns.
func connectPostgres(ctx context.Context, url string) (*pgx.Conn, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	return conn, nil
}

// closeConn closes a connection without waiting for a dead server.
func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // no transaction is open
}

// readCampaigns polls campaigns and looks their subscribers up.
func (c *consumer) readCampaigns(ctx context.Context, url string) error {
	conn, err := connectPostgres(ctx, url)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	for {
		fetches := c.client.PollRecords(ctx, pollRecords)
		if err := errors.Join(ctx.Err(), fetches.Err0()); err != nil {
			return err
		}
		b := &polledBatch{records: fetches.Records()}
		if len(b.records) == 0 {
			continue
		}
		b.open.Add(1)
		select {
		case c.batches <- b:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := c.lookUp(ctx, conn, b); err != nil {
			return err
		}
		b.open.Done()
	}
}

// lookUp sends the SELECTs of many campaigns together and cuts the results into
// chunks.
func (c *consumer) lookUp(ctx context.Context, conn *pgx.Conn, b *polledBatch) error {
	var campaigns []*campaign
	now := time.Now()
	for _, r := range b.records {
		if camp, ok := parseCampaign(r.Value, now); ok {
			campaigns = append(campaigns, camp)
		}
	}
	ch := &rowChunk{batch: b}
	for len(campaigns) > 0 {
		n := min(len(campaigns), lookUps)
		var err error
		if ch, err = c.lookUpSome(ctx, conn, campaigns[:n], ch); err != nil {
			return err
		}
		campaigns = campaigns[n:]
	}
	return c.handToWriter(ctx, ch)
}

// lookUpSome fills chunks from one round trip and returns the last one, which
// is not full.
func (c *consumer) lookUpSome(ctx context.Context, conn *pgx.Conn, campaigns []*campaign, ch *rowChunk) (*rowChunk, error) {
	queries := &pgx.Batch{}
	for _, camp := range campaigns {
		queries.Queue(`SELECT DISTINCT client_id FROM public.subscribers_restaurants WHERE restaurant_id = $1 ORDER BY client_id`, camp.Restaurant)
	}
	results := conn.SendBatch(ctx, queries)
	defer func() { _ = results.Close() }() // the second close after an error
	for _, camp := range campaigns {
		rows, err := results.Query()
		if err != nil {
			return nil, fmt.Errorf("look up subscribers: %w", err)
		}
		for rows.Next() {
			ch.appendRow(camp, rows.RawValues()[0])
			if len(ch.ends) < chunkRows {
				continue
			}
			if err := c.handToWriter(ctx, ch); err != nil {
				return nil, err
			}
			ch = &rowChunk{batch: ch.batch}
		}
		if err := rows.Err(); err != nil {
			return nil, fmt.Errorf("look up subscribers: %w", err)
		}
	}
	return ch, results.Close()
}

// handToWriter gives a chunk to the next free writer.
func (c *consumer) handToWriter(ctx context.Context, ch *rowChunk) error {
	if len(ch.ends) == 0 {
		return nil
	}
	ch.batch.open.Add(len(ch.ends))
	select {
	case c.chunks <- ch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// markCommitted marks offsets for the commit, in order, once the broker has
// acknowledged all notifications before them.
func (c *consumer) markCommitted(ctx context.Context) error {
	for {
		select {
		case b := <-c.batches:
			delivered := make(chan struct{})
			go func() { // ends with the batch, or with the process
				b.open.Wait()
				close(delivered)
			}()
			select {
			case <-delivered:
				c.client.MarkCommitRecords(b.records...)
			case <-ctx.Done():
				return ctx.Err()
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
