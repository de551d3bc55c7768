package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

// rowChunk is up to chunkRows rows, of one campaign or of several.
type rowChunk struct {
	batch     *polledBatch
	campaigns []*campaign
	arena     []byte // the client ids, back to back
	ends      []int  // end of each client id in arena
	of        []int32
}

// appendRow appends one row with a copy of client.
func (ch *rowChunk) appendRow(c *campaign, client []byte) {
	if n := len(ch.campaigns); n == 0 || ch.campaigns[n-1] != c {
		ch.campaigns = append(ch.campaigns, c)
	}
	ch.arena = append(ch.arena, client...)
	ch.ends = append(ch.ends, len(ch.arena))
	ch.of = append(ch.of, int32(len(ch.campaigns))) // from 1 on, as WITH ORDINALITY counts
}

// clientIDs returns the rows' client ids as parts of one string.
func (ch *rowChunk) clientIDs() []string {
	all := string(ch.arena)
	out := make([]string, len(ch.ends))
	from := 0
	for i, to := range ch.ends {
		out[i], from = all[from:to], to
	}
	return out
}

// writeChunks inserts chunks and then produces their records, until ctx ends.
// The rows come first, so no notification exists without its row.
func (c *consumer) writeChunks(ctx context.Context, url string) error {
	conn, err := connectPostgres(ctx, url)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	for {
		select {
		case ch := <-c.chunks:
			clients := ch.clientIDs()
			if err := ch.insertRows(ctx, conn, clients); err != nil {
				return fmt.Errorf("insert feedback rows: %w", err)
			}
			c.produceRecords(ctx, ch, clients)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

const columns = `restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
  adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, trigger_datetime_created, client_id`

// insertRows inserts the rows that are not in the table yet with one statement.
func (ch *rowChunk) insertRows(ctx context.Context, conn *pgx.Conn, clients []string) error {
	if len(ch.campaigns) == 1 {
		c := ch.campaigns[0]
		_, err := conn.Exec(ctx, `INSERT INTO public.subscribers_feedback (`+columns+`)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, client FROM unnest($10::text[]) AS client
ON CONFLICT (adv_campaign_id, client_id) DO NOTHING`,
			c.Restaurant, c.ID, c.Content, c.Owner, c.Contact, c.Start, c.End, c.Created, c.trigger, clients)
		return err
	}
	var restaurants, ids, contents, owners, contacts []string
	var starts, ends, created, triggers []int64
	for _, c := range ch.campaigns {
		restaurants, ids, contents = append(restaurants, c.Restaurant), append(ids, c.ID), append(contents, c.Content)
		owners, contacts = append(owners, c.Owner), append(contacts, c.Contact)
		starts, ends = append(starts, c.Start), append(ends, c.End)
		created, triggers = append(created, c.Created), append(triggers, c.trigger)
	}
	_, err := conn.Exec(ctx, `INSERT INTO public.subscribers_feedback (`+columns+`)
SELECT c.restaurant, c.id, c.content, c.owner, c.contact, c.starts, c.ends, c.created, c.trig, r.client
FROM unnest($1::text[], $2::int4[]) AS r(client, n)
JOIN unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::int8[], $9::int8[], $10::int8[], $11::int8[])
  WITH ORDINALITY AS c(restaurant, id, content, owner, contact, starts, ends, created, trig, n) ON c.n = r.n
ON CONFLICT (adv_campaign_id, client_id) DO NOTHING`,
		clients, ch.of, restaurants, ids, contents, owners, contacts, starts, ends, created, triggers)
	return err
}

// produceRecords gives all records of a chunk to the client, which sends them
// while the next rows are inserted. Rows that existed already get records as
// well: a run may have inserted them and crashed before its produce.
func (c *consumer) produceRecords(ctx context.Context, ch *rowChunk, clients []string) {
	size := 0
	for _, camp := range ch.campaigns {
		size = max(size, len(camp.keyHead)+len(camp.valueHead)+len(camp.valueTail)+2)
	}
	arena := make([]byte, 0, len(clients)*size+2*len(ch.arena))
	records := make([]kgo.Record, len(clients))
	acknowledged := func(_ *kgo.Record, err error) {
		if err != nil {
			select {
			case c.failed <- err:
			default:
			}
			return // open stays above zero, so the offset is never committed
		}
		ch.batch.open.Done()
	}
	for i, client := range clients {
		from := len(arena)
		var mid int
		arena, mid = ch.campaigns[ch.of[i]-1].appendRecord(arena, client)
		r := &records[i]
		r.Topic, r.Key, r.Value = c.topic, arena[from:mid:mid], arena[mid:len(arena):len(arena)]
		c.client.Produce(ctx, r, acknowledged)
	}
}
