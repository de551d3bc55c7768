package contender

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"dinnerbell/scripts/bench/deployment"
)

// copyRows is the number of rows per transaction, as in a step of the daemon.
const copyRows = 2000

// CopyLimit measures the limit of Postgres: binary COPY of the same rows into a
// table with the same definition and indexes, in the order of the unique index,
// encoded beforehand, with as many rows per transaction and as many connections
// as the daemon has lanes. Its database has no slot, so no WAL is decoded.
type CopyLimit struct {
	servers *deployment.Servers
	db      *deployment.Database
	conns   []*pgx.Conn
	chunks  [][][]byte // [lane][transaction]
}

// NewCopyLimit makes the database.
func NewCopyLimit(ctx context.Context, s *deployment.Servers) (*CopyLimit, error) {
	db, err := s.NewDatabase(ctx, "copy_limit")
	if err != nil {
		return nil, err
	}
	if err := db.Exec(ctx, deployment.FeedbackIndex); err != nil {
		return nil, err
	}
	return &CopyLimit{servers: s, db: db}, nil
}

// Prepare implements Contender.
func (c *CopyLimit) Prepare(ctx context.Context, l *CampaignLoad) error {
	c.chunks = nil
	for _, lane := range l.sortByLane() {
		c.chunks = append(c.chunks, encodeChunks(lane))
	}
	for range l.Lanes {
		conn, err := pgx.Connect(ctx, c.db.URL)
		if err != nil {
			return fmt.Errorf("connect for COPY: %w", err)
		}
		c.conns = append(c.conns, conn)
	}
	return c.db.ResetFeedback(ctx)
}

// Deliver implements Contender.
func (c *CopyLimit) Deliver(ctx context.Context, _ *CampaignLoad) error {
	g, ctx := errgroup.WithContext(ctx)
	for i, chunks := range c.chunks {
		g.Go(func() error {
			for _, chunk := range chunks {
				_, err := c.conns[i].PgConn().CopyFrom(ctx, bytes.NewReader(chunk), "COPY public.subscribers_feedback ("+copyColumns+") FROM STDIN (FORMAT binary)")
				if err != nil {
					return fmt.Errorf("copy: %w", err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// Settle implements Contender.
func (c *CopyLimit) Settle(ctx context.Context, l *CampaignLoad) error {
	for _, conn := range c.conns {
		_ = conn.Close(ctx) // no query is running
	}
	c.conns, c.chunks = nil, nil
	rows, err := c.db.CountRows(ctx, "public.subscribers_feedback")
	if err == nil && rows != int64(l.Total) {
		err = fmt.Errorf("check COPY: %d rows for %d notifications", rows, l.Total)
	}
	return err
}

// PID implements Contender.
func (c *CopyLimit) PID() int { return 0 }

const copyColumns = "restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact, " +
	"adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, trigger_datetime_created, client_id"

// encodeChunks encodes campaigns as binary COPY streams of copyRows rows each.
func encodeChunks(campaigns []Campaign) [][]byte {
	var chunks [][]byte
	chunk, rows := []byte(deployment.CopySignature), 0
	for i := range campaigns {
		head := encodeTupleHead(&campaigns[i], time.Now().Unix())
		for _, client := range campaigns[i].clients {
			chunk = append(chunk, head...)
			chunk = binary.BigEndian.AppendUint32(chunk, uint32(len(client)))
			chunk = append(chunk, client...)
			if rows++; rows == copyRows {
				chunks = append(chunks, append(chunk, deployment.CopyTrailer...))
				chunk, rows = []byte(deployment.CopySignature), 0
			}
		}
	}
	if rows > 0 {
		chunks = append(chunks, append(chunk, deployment.CopyTrailer...))
	}
	return chunks
}

// encodeTupleHead encodes a tuple up to the client, its last field.
func encodeTupleHead(c *Campaign, trigger int64) []byte {
	b := []byte{0, 10}
	for _, s := range []string{c.Restaurant, c.ID, c.Content, c.Owner, c.Contact} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	for _, n := range []int64{c.Start, c.End, c.Created} {
		b = binary.BigEndian.AppendUint32(b, 8)
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	b = binary.BigEndian.AppendUint32(b, 4)
	return binary.BigEndian.AppendUint32(b, uint32(trigger))
}
