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

// barrierPatience is how long a batch waits for the freshness barrier before it
// is accepted without being joined: its campaigns become pending rows, which are
// joined behind a later barrier. A batch that cancels something, or that follows
// one which waited in vain, has less of it.
const (
	barrierPatience = 100 * time.Millisecond
	barrierHaste    = 20 * time.Millisecond
)

// arrival is what intake hands to decide: messages just received, or what a
// replay read again.
type arrival struct {
	messages []message
	replayed []message // in their turn, behind all messages
}

// message is one record of the campaigns topic, parsed; or, with neither campaign
// nor dead letter, offsets that hold none.
type message struct {
	offset   int64 // the last that it stands for
	time     int64 // milliseconds
	campaign *Campaign
	dead     *deadLetter // instead of campaign
	// fresh is a moment before the barrier that the message has passed: the local
	// subscriptions hold every change committed before it. Zero: the barrier was
	// shut, and the message is not joined now.
	fresh       time.Time
	fingerprint fingerprint // of campaign
	known       *known      // what the campaign table held for its key; nil if nothing
	shared      bool        // the campaign runs, or ran, for other restaurants too

	// Of a replay alone.
	feed      *replayFeed
	replaced  bool     // the topic has a newer message of the campaign
	delivered state.ID // what the delivered cache has those under who have the campaign
	have      int      // of them
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

// intake polls the lane's partition, until ctx ends.
func (s *session) intake(ctx context.Context) error {
	in := s.openInput()
	defer in.close()
	for ctx.Err() == nil {
		if err := s.poll(ctx, in); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// parse turns a record into a message. It never fails: what is no campaign
// becomes a dead letter.
func (s *session) parse(r *record) message {
	m := message{offset: r.next - 1, time: r.time}
	c, err := s.parseCampaign(r)
	if err == nil {
		m.campaign, m.fingerprint = c, c.fingerprint()
		return m
	}
	m.dead = &deadLetter{topic: r.topic, partition: r.partition, offset: r.offset, timestamp: m.time, reason: err.Error(), key: r.key, value: r.value}
	whole := r.eachHeader(func(key string, value []byte) {
		m.dead.headers = append(m.dead.headers, header{key: key, value: value})
	})
	size := len(r.value)
	if r.cut {
		size = r.size
	}
	s.fitDeadLetter(m.dead, size, !whole)
	return m
}

// parseCampaign says why a record is no campaign that can be notified.
func (s *session) parseCampaign(r *record) (*Campaign, error) {
	switch {
	case r.unreadable != "" && r.next > r.offset+1:
		return nil, fmt.Errorf("offsets %d to %d cannot be read: %s", r.offset, r.next-1, r.unreadable)
	case r.unreadable != "":
		return nil, fmt.Errorf("offset %d cannot be read: %s", r.offset, r.unreadable)
	case r.cut:
		return nil, fmt.Errorf("the message takes %d bytes, more than is read of one", r.size)
	}
	c, err := ParseCampaign(r.value)
	if err != nil {
		return nil, err
	}
	size := 6*c.size() + headroom // escapes make a text six times as long at most
	if size > s.recordLimit {
		size = render(c, 0).recordSize(0) + headroom
	}
	if size > s.recordLimit {
		return nil, fmt.Errorf("a notification of it takes %d bytes, topic %s accepts %d", size, s.cfg.Kafka.Notifications, s.recordLimit)
	}
	if s.table != nil {
		if why := s.table.refusesCampaign(c); why != "" {
			return nil, errors.New(why)
		}
	}
	return c, nil
}

// weight is about what the message holds in memory, in bytes.
func (m *message) weight() int {
	switch {
	case m.campaign != nil:
		return m.campaign.size()
	case m.dead != nil:
		return m.dead.weight()
	}
	return 0
}

// passes tells that the message stands for offsets that hold nothing.
func (m *message) passes() bool { return m.campaign == nil && m.dead == nil }

// receive passes the freshness barrier and looks the keys up, at the same
// time, then hands the messages on. Where the barrier is shut it hands them on
// all the same, in their order: a cancel needs no join.
func (s *session) receive(ctx context.Context, batch []message) error {
	if len(batch) == 0 {
		return nil
	}
	if len(batch) == 1 && batch[0].passes() {
		return s.handOver(ctx, arrival{messages: batch})
	}
	failpoint.Hit("intake/received")
	received := time.Now()
	passed := true
	patience := s.patience(batch, received.Unix()) // before lookUp, which turns campaigns into dead letters
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		if patience > 0 {
			passed, err = s.tryBarrier(gctx, patience)
			s.shut = !passed
		}
		return err
	})
	g.Go(func() error {
		ctx, cancel := context.WithTimeout(gctx, s.cfg.SinkTimeout)
		defer cancel()
		return s.lookUp(ctx, batch)
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if passed {
		for i := range batch {
			batch[i].fresh = received
		}
	}
	return s.handOver(ctx, arrival{messages: batch})
}

// patience is how long a batch waits for the freshness barrier; 0 where nothing
// in it is joined.
func (s *session) patience(batch []message, now int64) time.Duration {
	joins, cancels := false, false
	for i := range batch {
		if c := batch[i].campaign; c != nil && c.End > now {
			joins = true
		} else if c != nil {
			cancels = true
		}
	}
	switch {
	case !joins:
		return 0
	case s.shut || cancels:
		return barrierHaste
	}
	return barrierPatience
}

// tryBarrier waits for the join's freshness, and no longer than patience.
func (s *session) tryBarrier(ctx context.Context, patience time.Duration) (passed bool, err error) {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err = s.barrier(waiting); err != nil && ctx.Err() == nil && waiting.Err() != nil {
		return false, nil
	}
	return err == nil, err
}

// barrier waits for the join's freshness. It runs after the messages were
// received, so what they are joined with is no older than they are.
func (s *session) barrier(ctx context.Context) error {
	s.lane.waiting.Add(1)
	defer s.lane.waiting.Add(-1)
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
func (s *session) lookUp(ctx context.Context, batch []message) error {
	if err := s.screen(ctx, batch); err != nil {
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
	rows, err := s.reader.Query(ctx, knownIDsSQL(s.t), slices.Collect(maps.Keys(byID)))
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
	return s.lookUpKnown(ctx, there)
}

// knownIDsSQL asks for each id by itself: LIMIT keeps the planner from turning it
// into a join over the whole table.
func knownIDsSQL(t tables) string {
	return `SELECT k.campaign FROM unnest($1::text[]) AS k(campaign)
CROSS JOIN LATERAL (SELECT FROM ` + t.campaign + ` c WHERE c.adv_campaign_id = k.campaign LIMIT 1) AS c`
}

// knownKeysSQL gives each key with its row, NULLs where there is none, and
// whether the campaign has other restaurants too.
func knownKeysSQL(t tables) string {
	return `SELECT k.campaign, k.restaurant, coalesce(c.version, 0), coalesce(c.lane, -1), coalesce(c.msg_lane, -1), coalesce(c.msg_offset, -1), coalesce(c.msg_time, -1), c.fingerprint,
  EXISTS (SELECT FROM ` + t.campaign + ` o WHERE o.adv_campaign_id = k.campaign AND o.restaurant_id <> k.restaurant)
FROM unnest($1::text[], $2::text[]) AS k(campaign, restaurant)
LEFT JOIN LATERAL (SELECT c.version, c.lane, c.msg_lane, c.msg_offset, c.msg_time, c.fingerprint FROM ` + t.campaign + ` c WHERE c.adv_campaign_id = k.campaign AND c.restaurant_id = k.restaurant LIMIT 1) AS c ON true`
}

// readKnown calls fn with what the campaign table holds for each key, nil if
// nothing, and whether the campaign has other restaurants.
func (t tables) readKnown(ctx context.Context, conn querier, keys []key, fn func(k key, n *known, shared bool)) error {
	campaigns, restaurants := make([]string, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		campaigns[i], restaurants[i] = k.campaign, k.restaurant
	}
	rows, err := conn.Query(ctx, knownKeysSQL(t), campaigns, restaurants)
	if err != nil {
		return fmt.Errorf("look up campaigns: %w", err)
	}
	var k key
	var n known
	var content []byte
	var shared bool
	_, err = pgx.ForEachRow(rows, []any{&k.campaign, &k.restaurant, &n.version, &n.owner, &n.lane, &n.offset, &n.time, &content, &shared}, func() error {
		if content == nil {
			fn(k, nil, shared)
			return nil
		}
		found := n
		copy(found.fingerprint[:], content)
		fn(k, &found, shared)
		return nil
	})
	if err != nil {
		return fmt.Errorf("look up campaigns: %w", err)
	}
	return nil
}

// lookUpKnown is lookUp for messages whose ids the campaign table has.
func (s *session) lookUpKnown(ctx context.Context, batch []*message) error {
	byKey := make(map[key][]*message, len(batch))
	for _, m := range batch {
		k := m.campaign.key()
		byKey[k] = append(byKey[k], m)
	}
	if len(byKey) == 0 {
		return nil
	}
	return s.t.readKnown(ctx, s.reader, slices.Collect(maps.Keys(byKey)), func(k key, n *known, shared bool) {
		for _, m := range byKey[k] {
			m.known, m.shared = n, shared
		}
	})
}
