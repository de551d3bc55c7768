package stream

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/failpoint"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/topic"
)

// A step whose rows cannot all go by COPY is contested: somebody may have been
// notified before, a trigger of the table may drop rows, or the table has refused
// the COPY. Its transaction travels in halves, the feedback rows and everything
// else: what ON CONFLICT leaves out, and what the table refuses, is not shipped.

// isContested tells whether some of the step's clients go by ON CONFLICT.
func (st *step) isContested() bool {
	return slices.ContainsFunc(st.picks, func(k *clientPick) bool { return k.contested })
}

// commitContested decides a contested step.
func (c *committer) commitContested(ctx context.Context, d *inflightStep) error {
	for {
		err := c.tryContested(ctx, d)
		if err == nil {
			c.afterCommit(d)
			if d.early == nil {
				return c.handToShipper(ctx, d)
			}
			return nil
		}
		if err := c.checkRetry(d, err); err != nil {
			return err
		}
		if err := c.rollBack(ctx, d, err); err != nil {
			return err
		}
		d.st.seal(time.Now().Unix())
	}
}

// tryContested runs the step's transaction once. On error it is not committed, or
// not known to be. Finding the rows that the table refuses grows with the step.
func (c *committer) tryContested(ctx context.Context, d *inflightStep) error {
	limit := c.claim.Config.SinkTimeout
	if d.st.isGuarded() {
		limit *= 10
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	until, _ := ctx.Deadline()
	d.p = c.letters.payload(d.st)
	d.p.Seq = d.seq
	f := sink.NewPipeline(until, c.claim.Conn)
	c.addFeedbackRows(f, d.st)
	if err := f.RoundTrip(); err != nil {
		return err
	}
	if err := c.insertContested(ctx, d.st, d.p); err != nil {
		return err
	}
	failpoint.Hit("commit/rows-written")
	c.addStepChanges(f, d.st, d.p)
	f.Send()
	failpoint.Hit("commit/contested-sent")
	return f.Receive()
}

// isGuarded tells whether the table has refused rows of one of the step's campaigns.
func (st *step) isGuarded() bool {
	return slices.ContainsFunc(st.picks, func(k *clientPick) bool { return k.live.guarded.Load() })
}

// insertContested writes the clients that COPY did not, and leaves in p only
// those that were new.
func (c *committer) insertContested(ctx context.Context, st *step, p *record.Payload) error {
	if st.isGuarded() {
		// A deferred constraint would speak at the commit, and name no row.
		if _, err := c.claim.Conn.Exec(ctx, `SET CONSTRAINTS ALL IMMEDIATE`); err != nil {
			return fmt.Errorf("check constraints at once: %w", err)
		}
	}
	p.Segments = p.Segments[:0]
	st.refused = st.refused[:0]
	for _, k := range st.picks {
		clients := k.clients
		if k.contested {
			n := &sink.Insertion{Conn: c.claim.Conn, Tables: c.claim.Tables, Table: c.claim.Feedback, Campaign: k.live.Campaign, Trigger: st.trigger, Guarded: k.live.guarded.Load()}
			err := n.Write(ctx, k.clients)
			c.lane.svc.counters.deliveredMisses.Add(n.Misses)
			if err != nil {
				return err
			}
			clients = &n.Written
			p.Dead = append(p.Dead, c.letters.lettersOf(n, k.live)...)
			if n.Refused != "" {
				st.noteRefused(k.live)
			}
		}
		if clients.Len() > 0 {
			p.Segments = append(p.Segments, record.Segment{Campaign: k.live.Campaign, Trigger: st.trigger, Clients: clients, Template: k.wire})
		}
	}
	return nil
}

// letterMaker completes dead letters for the dead-letter topic.
type letterMaker struct {
	topic string // of the campaigns
	limit int    // bytes that the dead-letter topic accepts per batch
}

func newLetterMaker(cfg topic.Config, limits topic.Limits) letterMaker {
	return letterMaker{topic: cfg.Campaigns, limit: limits.DeadLetter}
}

// complete makes a letter that was not made of a message fit to be sent.
func (m *letterMaker) complete(d record.DeadLetter) record.DeadLetter {
	d.Topic = m.topic
	d.Fit(m.limit, len(d.Value), false)
	return d
}

// lettersOf returns the dead letters of the rows that an insertion has not written.
func (m *letterMaker) lettersOf(n *sink.Insertion, l *liveCampaign) (out []record.DeadLetter) {
	if n.Refused != "" {
		out = append(out, m.complete(l.refusedLetter(n.Refused)))
	}
	for _, why := range slices.Sorted(maps.Keys(n.LeftOut)) {
		out = append(out, m.complete(l.leftOutLetter(why, n.LeftOut[why])))
	}
	return out
}

// Headers that tell the letters that are made here from refused messages.
const (
	headerReconstructed = "reconstructed" // the value was made from the campaign row
	headerLeftOut       = "clients"       // how many clients were left out; the value names them
)

// refusedLetter is the dead letter of a campaign that was accepted before the
// table refused its rows: its message is read no more, its content is known.
func (l *liveCampaign) refusedLetter(reason string) record.DeadLetter {
	c := l.Campaign
	value, err := json.Marshal(struct {
		RestaurantID string `json:"restaurant_id"`
		ID           string `json:"adv_campaign_id"`
		Content      string `json:"adv_campaign_content"`
		Owner        string `json:"adv_campaign_owner"`
		OwnerContact string `json:"adv_campaign_owner_contact"`
		Start        int64  `json:"adv_campaign_datetime_start"`
		End          int64  `json:"adv_campaign_datetime_end"`
		Created      int64  `json:"datetime_created"`
	}{c.RestaurantID, c.ID, c.Content, c.Owner, c.OwnerContact, c.Start, c.End, c.Created})
	if err != nil {
		value = []byte(c.ID) // cannot happen: strings and numbers always encode
	}
	return l.newLetter(reason, value, record.Header{Key: headerReconstructed, Value: []byte("true")})
}

// leftOutBytes bounds the ids that one letter names.
const leftOutBytes = 64 << 10

// leftOutLetter is the durable trace of clients who did not get a campaign.
func (l *liveCampaign) leftOutLetter(reason string, clients []string) record.DeadLetter {
	named, size := len(clients), 0
	for i, c := range clients {
		if size += len(c) + 3; size > leftOutBytes && i > 0 {
			named = i
			break
		}
	}
	value, err := json.Marshal(struct {
		ID           string   `json:"adv_campaign_id"`
		RestaurantID string   `json:"restaurant_id"`
		LeftOut      int      `json:"left_out"`
		Clients      []string `json:"client_ids"`
	}{l.ID, l.RestaurantID, len(clients), clients[:named]})
	if err != nil {
		value = []byte(l.ID) // cannot happen: strings and numbers always encode
	}
	letter := l.newLetter(fmt.Sprintf("%d clients are left out: %s", len(clients), reason), value, record.Header{Key: headerLeftOut, Value: strconv.AppendInt(nil, int64(len(clients)), 10)})
	letter.Clients = int64(len(clients))
	return letter
}

func (l *liveCampaign) newLetter(reason string, value []byte, mark record.Header) record.DeadLetter {
	return record.DeadLetter{Partition: l.from.Lane, Offset: l.from.Offset, Timestamp: l.Created * 1000, Reason: reason, Value: value, Headers: []record.Header{mark}}
}

// payload is what the step ships if every client of it was new and the table takes
// every row, with the letters of those that were left out before.
func (m *letterMaker) payload(st *step) *record.Payload {
	p := st.buildPayload()
	p.Dead = slices.Clip(p.Dead)
	keys := slices.SortedFunc(maps.Keys(st.leftOut), func(a, b leftOut) int {
		return cmp.Or(campaign.CompareKeys(a.live.Key(), b.live.Key()), strings.Compare(a.reason, b.reason))
	})
	for _, k := range keys {
		p.Dead = append(p.Dead, m.complete(k.live.leftOutLetter(k.reason, st.leftOut[k])))
	}
	return p
}

// noteLeftOut counts and logs what a committed step's own letters name, those
// behind the letters of refused messages.
func (l *lane) noteLeftOut(p *record.Payload, behind int) {
	for _, d := range p.Dead[behind:] {
		attrs := func() []any { return []any{"lane", l.id, "offset", d.Offset, "reason", d.Reason} }
		if d.Clients > 0 {
			l.svc.counters.unservable.Add(d.Clients)
			if l.svc.skipped.admitLine(skipLeftOut) {
				l.svc.cfg.Logger.Warn("clients are left out; a dead letter names them", attrs()...)
			}
			continue
		}
		l.svc.counters.dead.Add(1)
		l.svc.skipped.logMessage(skipRefused, attrs)
	}
}

// refuseUnencodable turns messages into dead letters whose texts the sink's database has no
// characters for. It asks only where the encoding is not Unicode, and about texts
// that are not ASCII.
func (l *campaignLookup) refuseUnencodable(ctx context.Context, batch []message) error {
	if l.table.HoldsUnicode() {
		return nil
	}
	for i := range batch {
		m := &batch[i]
		if m.campaign == nil {
			continue
		}
		c := m.campaign
		text := strings.Join([]string{c.RestaurantID, c.ID, c.Content, c.Owner, c.OwnerContact}, "")
		if !strings.ContainsFunc(text, func(r rune) bool { return r >= utf8.RuneSelf }) {
			continue
		}
		_, err := l.reader.Exec(ctx, `SELECT pg_catalog.convert_from($1::bytea, 'UTF8')`, []byte(text))
		refused, ok := errors.AsType[*pgconn.PgError](err)
		if err != nil && (!ok || !sink.RefusesRow(refused)) {
			return fmt.Errorf("try the encoding of the sink's database: %w", err)
		}
		if err != nil {
			letter := l.letters.complete((&liveCampaign{Campaign: c, from: campaign.Position{Lane: l.lane, Offset: m.offset}}).refusedLetter("the sink's database, of encoding " + l.table.Encoding + ", cannot hold it: " + refused.Message))
			letter.Timestamp = m.time
			m.campaign, m.dead = nil, &letter
		}
	}
	return nil
}

// noteRefused notes that the table takes no row of a campaign: it is finished by this
// step. Steps that are built already leave it out once this one is committed.
func (st *step) noteRefused(l *liveCampaign) {
	st.refused = append(st.refused, l)
	st.rows[l.Key()].state = stateFinished // the row is there: see decider.pickClients
}

// leaveOutClient notes clients whose id the feedback table or a record cannot carry.
func (st *step) leaveOutClient(l *liveCampaign, reason string, id id.ID) {
	if st.leftOut == nil {
		st.leftOut = map[leftOut][]string{}
	}
	k := leftOut{l, reason}
	st.leftOut[k] = append(st.leftOut[k], id.Text())
}

type leftOut struct {
	live   *liveCampaign
	reason string
}
