package stream

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"dinnerbell/internal/failpoint"
	"dinnerbell/state"
)

// intakeMessages bounds how many messages reach a step together; their bytes
// are bounded by Config.StepBytes.
const intakeMessages = 500

// keepEnded is how long a campaign row stays after its end, so that an older
// message of the same campaign, late on another partition, is known to be old.
const keepEnded = 7 * 24 * time.Hour

// arrival is what intake hands to decide: messages just received, or campaigns
// that are due, or what a replay read again. All have passed the freshness barrier: the local
// subscriptions hold every change committed before it was received or due.
type arrival struct {
	messages []message
	due      []*live
	replayed []message // in their turn, behind all messages
}

// message is one record of the campaigns topic, parsed.
type message struct {
	offset      int64
	time        int64 // milliseconds
	campaign    *Campaign
	dead        *deadLetter // instead of campaign
	fresh       time.Time   // before the barrier: a strict one lets the join see the subscriptions of this moment or later
	fingerprint fingerprint // of campaign
	known       *known      // what the campaign table held for its key; nil if nothing
	shared      bool        // the campaign runs, or ran, for other restaurants too
	// delivered names what the delivered cache holds for an edit: the clients who
	// have the campaign, have of them.
	delivered state.ID
	have      int

	// Of a replay alone.
	feed     *replayFeed
	replaced bool // the topic has a newer message of the campaign
}

// fingerprint identifies the content of a message: all eight fields.
type fingerprint [sha256.Size]byte

func (c *Campaign) fingerprint() fingerprint {
	h := sha256.New()
	var n [8]byte
	for _, f := range []string{c.RestaurantID, c.ID, c.Content, c.Owner, c.OwnerContact} {
		binary.BigEndian.PutUint64(n[:], uint64(len(f)))
		h.Write(n[:])
		h.Write([]byte(f))
	}
	for _, t := range []int64{c.Start, c.End, c.Created} {
		binary.BigEndian.PutUint64(n[:], uint64(t))
		h.Write(n[:])
	}
	return fingerprint(h.Sum(nil))
}

// known is the newest message of a key that was accepted so far.
type known struct {
	version     version
	time        int64
	fingerprint fingerprint
}

// intake polls the lane's partition and keeps its appointments, until ctx ends.
func (s *session) intake(ctx context.Context) error {
	// Everything pending: what was live before the takeover is due at once.
	if _, err := bounded(ctx, 10*s.cfg.SinkTimeout, func(ctx context.Context) (struct{}, error) { return struct{}{}, s.reload(ctx, time.Now(), -1) }); err != nil {
		return err
	}
	loaded := time.Now()
	for ctx.Err() == nil {
		now := time.Now()
		if now.Sub(loaded) >= agendaReload {
			loaded = now
			if err := s.upkeep(ctx, now); err != nil {
				return err
			}
		}
		if due := s.agenda.due(now.Unix()); len(due) > 0 {
			if err := s.bringDue(ctx, due); err != nil {
				return err
			}
			continue
		}
		if err := s.poll(ctx, loaded.Add(agendaReload)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// upkeep runs a few times an hour: later appointments, and campaign rows that
// nobody needs any more.
func (s *session) upkeep(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 10*s.cfg.SinkTimeout)
	defer cancel()
	if err := s.reload(ctx, now, now.Unix()); err != nil {
		return err
	}
	if _, err := s.reader.Exec(ctx, `DELETE FROM `+s.t.campaign+` WHERE lane = $1 AND adv_campaign_datetime_end < $2 AND accepted_at < $3`,
		s.lane.id, now.Add(-keepEnded).Unix(), now.Add(-keepEnded)); err != nil {
		return fmt.Errorf("delete ended campaigns of lane %d: %w", s.lane.id, err)
	}
	return nil
}

// bringDue hands on campaigns whose start has come, against the subscriptions
// of this moment.
func (s *session) bringDue(ctx context.Context, due []appointment) error {
	if err := s.barrier(ctx); err != nil {
		return err
	}
	failpoint.Hit("intake/due")
	list, err := bounded(ctx, s.cfg.SinkTimeout, func(ctx context.Context) ([]*live, error) { return s.load(ctx, due) })
	if err != nil || len(list) == 0 {
		return err
	}
	return s.handOver(ctx, arrival{due: list})
}

// poll waits for messages, at most until the next appointment.
func (s *session) poll(ctx context.Context, until time.Time) error {
	if at, ok := s.agenda.next(); ok && at.Before(until) {
		until = at
	}
	pollCtx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-s.agenda.wake:
			cancel()
		case <-pollCtx.Done():
		}
	}()
	fetches := s.client.PollRecords(pollCtx, intakeMessages)
	cancel()
	<-watched
	if err := s.fetchError(fetches); err != nil {
		return err
	}
	batch, size := make([]message, 0, fetches.NumRecords()), 0
	for it := fetches.RecordIter(); !it.Done(); {
		r := it.Next()
		if len(batch) > 0 && size+len(r.Value) > s.cfg.StepBytes {
			if err := s.receive(ctx, batch); err != nil {
				return err
			}
			batch, size = nil, 0
		}
		batch, size = append(batch, s.parse(r)), size+len(r.Value)
	}
	return s.receive(ctx, batch)
}

// fetchError is nil where the poll merely ended.
func (s *session) fetchError(fetches kgo.Fetches) error {
	for _, e := range fetches.Errors() {
		switch {
		case errors.Is(e.Err, context.Canceled), errors.Is(e.Err, context.DeadlineExceeded):
		case errors.Is(e.Err, kerr.OffsetOutOfRange):
			return fmt.Errorf("read campaigns: %w", e.Err) // the takeover that follows names the choice
		default:
			return fmt.Errorf("read %s/%d: %w", s.cfg.Kafka.Campaigns, s.lane.id, e.Err)
		}
	}
	return nil
}

// parse turns a record into a message. It never fails: what is no campaign
// becomes a dead letter.
func (s *session) parse(r *kgo.Record) message {
	m := message{offset: r.Offset, time: r.Timestamp.UnixMilli()}
	c, err := ParseCampaign(r.Value)
	if err == nil {
		size := 6*c.size() + headroom // escapes make a text six times as long at most
		if size > s.recordLimit {
			size = render(c, 0).recordSize(0) + headroom
		}
		if size > s.recordLimit {
			err = fmt.Errorf("a notification of it takes %d bytes, topic %s accepts %d", size, s.cfg.Kafka.Notifications, s.recordLimit)
		}
	}
	if err == nil && s.table != nil {
		if why := s.table.refusesCampaign(c); why != "" {
			err = errors.New(why)
		}
	}
	if err == nil {
		m.campaign, m.fingerprint = c, c.fingerprint()
		return m
	}
	m.dead = &deadLetter{topic: r.Topic, partition: r.Partition, offset: r.Offset, timestamp: m.time, reason: err.Error(), key: r.Key, value: r.Value}
	for _, h := range r.Headers {
		m.dead.headers = append(m.dead.headers, header{key: h.Key, value: h.Value})
	}
	return m
}

// receive passes the freshness barrier and looks the keys up, at the same
// time, then hands the messages on.
func (s *session) receive(ctx context.Context, batch []message) error {
	if len(batch) == 0 {
		return nil
	}
	failpoint.Hit("intake/received")
	fresh := time.Now()
	for i := range batch {
		batch[i].fresh = fresh
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.barrier(gctx) })
	g.Go(func() error {
		ctx, cancel := context.WithTimeout(gctx, s.cfg.SinkTimeout)
		defer cancel()
		return s.lookUp(ctx, s.reader, batch)
	})
	if err := g.Wait(); err != nil {
		return err
	}
	for i := range batch {
		if m := &batch[i]; m.edits() {
			if err := s.loadDelivered(ctx, s.reader, m); err != nil {
				return err
			}
		}
	}
	return s.handOver(ctx, arrival{messages: batch})
}

// barrier waits for the join's freshness. It runs after the messages were
// received, so what they are joined with is no older than they are.
func (s *session) barrier(ctx context.Context) error {
	s.lane.waiting.Store(true)
	defer s.lane.waiting.Store(false)
	if err := s.lane.svc.barrier.Barrier(ctx); err != nil {
		return fmt.Errorf("wait for fresh subscriptions: %w", err)
	}
	return nil
}

func (s *session) handOver(ctx context.Context, a arrival) error {
	select {
	case s.arrivals <- a:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lookUp fills in what the campaign table holds for the batch's keys. Steps
// that are still in flight are not in it; decide knows those itself. Most ids are
// new, so it is asked first which are not.
func (s *session) lookUp(ctx context.Context, conn *pgx.Conn, batch []message) error {
	if err := s.screen(ctx, conn, batch); err != nil {
		return err
	}
	byID := make(map[string][]*message, len(batch))
	for i := range batch {
		if c := batch[i].campaign; c != nil {
			byID[c.ID] = append(byID[c.ID], &batch[i])
		}
	}
	if len(byID) == 0 {
		return nil
	}
	rows, err := conn.Query(ctx, knownIDsSQL(s.t), slices.Collect(maps.Keys(byID)))
	if err != nil {
		return fmt.Errorf("look up campaigns: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("look up campaigns: %w", err)
	}
	var there []*message
	for _, id := range ids {
		there = append(there, byID[id]...)
	}
	return s.lookUpKnown(ctx, conn, there)
}

// knownIDsSQL asks for each id by itself: LIMIT keeps the planner from turning it
// into a join over the whole table.
func knownIDsSQL(t tables) string {
	return `SELECT k.campaign FROM unnest($1::text[]) AS k(campaign)
CROSS JOIN LATERAL (SELECT FROM ` + t.campaign + ` c WHERE c.adv_campaign_id = k.campaign LIMIT 1) AS c`
}

func knownKeysSQL(t tables) string {
	return `SELECT k.campaign, k.restaurant, coalesce(c.lane, -1), coalesce(c.msg_offset, -1), coalesce(c.msg_time, -1), c.fingerprint,
  EXISTS (SELECT FROM ` + t.campaign + ` o WHERE o.adv_campaign_id = k.campaign AND o.restaurant_id <> k.restaurant)
FROM unnest($1::text[], $2::text[]) AS k(campaign, restaurant)
LEFT JOIN LATERAL (SELECT c.lane, c.msg_offset, c.msg_time, c.fingerprint FROM ` + t.campaign + ` c WHERE c.adv_campaign_id = k.campaign AND c.restaurant_id = k.restaurant LIMIT 1) AS c ON true`
}

// lookUpKnown is lookUp for messages whose ids the campaign table has.
func (s *session) lookUpKnown(ctx context.Context, conn *pgx.Conn, batch []*message) error {
	byKey := make(map[key][]*message, len(batch))
	var campaigns, restaurants []string
	for _, m := range batch {
		k := m.campaign.key()
		if byKey[k] == nil {
			campaigns, restaurants = append(campaigns, k.campaign), append(restaurants, k.restaurant)
		}
		byKey[k] = append(byKey[k], m)
	}
	if len(byKey) == 0 {
		return nil
	}
	rows, err := conn.Query(ctx, knownKeysSQL(s.t), campaigns, restaurants)
	if err != nil {
		return fmt.Errorf("look up campaigns: %w", err)
	}
	var k key
	var n known
	var content []byte
	var shared bool
	_, err = pgx.ForEachRow(rows, []any{&k.campaign, &k.restaurant, &n.version.lane, &n.version.offset, &n.time, &content, &shared}, func() error {
		found := n
		copy(found.fingerprint[:], content)
		for _, m := range byKey[k] {
			if m.shared = shared; content != nil {
				m.known = &found
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look up campaigns: %w", err)
	}
	return nil
}
