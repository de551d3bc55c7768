package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/failpoint"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
)

// A step whose rows cannot all go by COPY is contested: a client may have been notified
// before, a trigger of the table may drop rows, or the table has refused the COPY. Its
// transaction is sent in two parts, first the feedback rows, then the other changes:
// the payload must leave out clients who had a row and clients whose row the table
// refuses.

// isContested reports whether some of the step's clients go by ON CONFLICT.
func (st *step) isContested() bool {
	return slices.ContainsFunc(st.picks, func(k *clientPick) bool { return k.contested })
}

// commitContested commits a contested step, in as many tries as that takes.
func (c *committer) commitContested(ctx context.Context, d *inflightStep) error {
	for {
		if d.st.postponeGuarded() {
			d.st.sealStep(c.lane.svc.now().Unix())
		}
		err := c.tryContested(ctx, d)
		if err == nil {
			c.afterCommit(d)
			if d.early == nil {
				return c.handToShipper(ctx, d)
			}
			return nil
		}
		d.st.forgetRefused()
		if err := c.checkRetry(d, err); err != nil {
			return err
		}
		if err := c.rollBack(ctx, d, err); err != nil {
			return err
		}
		d.st.sealStep(c.lane.svc.now().Unix())
	}
}

// tryContested runs the step's transaction once. On error the step is not committed, or
// the outcome is unknown. The time to find refused rows grows with the step, so a
// guarded step gets ten times the timeout.
func (c *committer) tryContested(ctx context.Context, d *inflightStep) error {
	limit := c.claim.Config.SinkTimeout
	if d.st.isGuarded() {
		limit *= 10
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	until, _ := ctx.Deadline()
	d.p = d.st.payload(&c.letters)
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

// isGuarded reports whether rows of the step go behind savepoints.
func (st *step) isGuarded() bool {
	return st.suspect || slices.ContainsFunc(st.picks, func(k *clientPick) bool { return k.live.guarded.Load() })
}

// insertContested writes the rows that do not go by COPY, and leaves in p only clients
// whose row is new.
func (c *committer) insertContested(ctx context.Context, st *step, p *record.Payload) error {
	if st.isGuarded() {
		// A deferred constraint would fail the commit without naming a row. It may refuse
		// one of the rows that have gone by COPY.
		_, err := c.claim.Conn.Exec(ctx, `SET CONSTRAINTS ALL IMMEDIATE`)
		if e, ok := errors.AsType[*pgconn.PgError](err); ok && sink.RefusesRow(e) {
			return fmt.Errorf("check constraints at once: %w: %w", sink.ErrRowRefused, err)
		}
		if err != nil {
			return fmt.Errorf("check constraints at once: %w", err)
		}
	}
	p.Segments = p.Segments[:0]
	st.refused = st.refused[:0]
	search := &guardedSearch{left: maxGuarded - st.guardedClients()}
	for _, k := range st.picks {
		clients := k.clients
		if why := st.whyRefused(k); why != "" { // a dead letter has the campaign already
			k.notified = 0
			st.noteRefused(k, why)
			continue
		}
		if k.late && c.guarded.isRefused(k.live) { // the same
			k.notified = 0
			continue
		}
		if k.contested {
			written, err := c.insertPick(ctx, st, p, k, search)
			if err != nil {
				return err
			}
			clients = written
		}
		if clients.Len() > 0 {
			p.Segments = append(p.Segments, record.Segment{Campaign: k.live.Campaign, Trigger: st.trigger, Clients: clients, Template: k.wire})
		}
	}
	if search.tooMany {
		return errTooManyGuarded
	}
	if search.clients > 0 {
		c.guarded.noteTime(search.clients, search.took)
	}
	return nil
}

// errTooManyGuarded reports that the table refuses clients of campaigns that are too large
// to find them in this step. The campaigns are marked, and the step is done again without
// them.
var errTooManyGuarded = errors.New("too many clients to find the refused ones among")

// guardedSearch is the search for refused rows in one try of a step.
type guardedSearch struct {
	left    int           // clients of campaigns that become guarded, among whom the try may still look for the refused ones
	tooMany bool          // a campaign had more: the try is rolled back
	clients int           // of campaigns that were guarded before
	took    time.Duration // to write their rows
}

// insertPick writes the rows of a pick that does not go by COPY, and returns the clients
// whose row is new. It marks the campaign as guarded where the table refuses some.
func (c *committer) insertPick(ctx context.Context, st *step, p *record.Payload, k *clientPick, search *guardedSearch) (*id.List, error) {
	guarded := k.live.guarded.Load()
	n := &sink.Insertion{
		Conn: c.claim.Conn, Tables: c.claim.Tables, Table: c.claim.Feedback, Campaign: k.live.Campaign, Trigger: st.trigger,
		Guarded: guarded || st.suspect, Suspect: !guarded && !k.late, SearchLimit: search.left,
		Taken: k.late || k.live.taken, CountOwn: k.live.again || k.live.version > 1,
	}
	began := time.Now()
	err := n.Write(ctx, k.clients)
	if guarded {
		search.clients, search.took = search.clients+k.clients.Len(), search.took+time.Since(began)
	}
	c.lane.svc.counters.deliveredMisses.Add(n.Misses)
	if err != nil {
		return nil, err
	}
	k.notified, k.already, k.own = int64(n.Written.Len()), n.Misses, n.Own
	k.refuses = n.Refused != "" || len(n.LeftOut) > 0
	if !guarded && (n.TooMany || len(n.LeftOut) > 0) {
		c.guarded.markGuarded(k)
		if search.left -= k.clients.Len(); n.TooMany {
			search.tooMany, search.left = true, 0 // the try is in vain: it only finds the other campaigns
		}
	}
	p.Dead = append(p.Dead, lettersOf(&c.letters, n, k.live)...)
	if n.Refused != "" {
		st.noteRefused(k, n.Refused)
	}
	written := n.Written // a copy, so that the payload does not hold the insertion until it is shipped
	return &written, nil
}

// stepTries is how often a step is repeated because of other lanes. Then the session
// ends, and the next one reads everything anew.
const stepTries = 16

// correctedKeys are campaigns that a step was wrong about: the decider must forget
// their messages.
type correctedKeys struct {
	mu   sync.Mutex
	keys []campaign.Key
}

func (c *correctedKeys) add(keys ...campaign.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys = append(c.keys, keys...)
}

func (c *correctedKeys) takeAll() (keys []campaign.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	keys, c.keys = c.keys, nil
	return keys
}

// reconcileStep judges a step's messages again after its transaction was rolled back
// because a campaign's row was not as expected: another lane or an operator has
// changed the row since it was looked up. A campaign that has lost its row leaves the
// step with its clients. A message that wins all the same becomes a pending row, which
// comes back through the start times.
func (c *committer) reconcileStep(ctx context.Context, st *step) error {
	ctx, cancel := context.WithTimeout(ctx, c.claim.Config.SinkTimeout)
	defer cancel()
	keys := make([]campaign.Key, 0, len(st.rows))
	for k := range st.rows {
		keys = append(keys, k)
	}
	now := c.lane.svc.now().Unix()
	if err := c.claim.Tables.ReadAccepted(ctx, c.claim.Conn, keys, func(k campaign.Key, there *campaign.Version, _ bool) {
		r := st.rows[k]
		if r.accept || r.repeats {
			c.reconcileMessage(st, r, there, now)
		} else if there == nil || there.RowVersion != r.version || there.Owner != r.owner {
			c.loseCampaign(st, r)
			delete(st.rows, k)
		}
	}); err != nil {
		return err
	}
	// Campaigns that this lane still delivers come back, with their cursors.
	c.starts.allowReload(st.lost)
	list, err := c.claim.Tables.ReadPendingKeys(ctx, c.claim.Conn, c.lane.id, slices.DeleteFunc(slices.Clone(st.lost), func(k campaign.Key) bool { return st.rows[k] != nil && st.rows[k].accept }))
	if err != nil {
		return err
	}
	c.starts.addLoaded(c.lane.svc.now(), startTimesOf(list))
	return c.dropStaleLate(ctx, st)
}

// reconcileMessage reconciles a row that holds a message of the step; there is the
// version that the campaign table holds now, nil if none.
func (c *committer) reconcileMessage(st *step, r *campaignRow, there *campaign.Version, now int64) {
	if campaign.SameRow(r.replaces, there) && (r.accept || there.RowVersion == r.version && (r.state == "" || there.Owner == r.owner)) {
		return
	}
	this := r.acceptedVersion()
	outcome := campaign.Judge(campaign.Message{
		Position: this.Position, Time: this.Time, Fingerprint: this.Fingerprint, End: r.End,
		Replayed: r.window != nil && there != nil && there.Position == this.Position,
	}, there, now)
	if r.state == sink.StateExpired {
		st.expired--
	}
	c.loseCampaign(st, r)
	r.served, r.state, r.cursor, r.replaces, r.revives = false, "", "", there, 0
	r.hold, r.heldAt = campaign.NotHeld, 0
	r.audience, r.looked, r.skipped, r.cutOff, r.refusal = nil, 0, 0, false, ""
	switch outcome {
	case campaign.Older:
		delete(st.rows, r.Key())
		st.noteOlder(r.Campaign, this, *there)
	case campaign.Stands:
		delete(st.rows, r.Key())
		st.noteStands(r.Campaign, this, *there)
	case campaign.Repeat:
		r.accept, r.repeats = false, true
		r.liveCampaign = &liveCampaign{Campaign: r.Campaign, owner: there.Owner, version: there.RowVersion, approved: there.Approved}
		r.hold, r.heldAt = there.Hold, there.HeldAt
	default:
		r.accept, r.repeats, r.state = true, false, sink.StatePending
		r.liveCampaign = &liveCampaign{Campaign: r.Campaign, from: r.at, owner: c.lane.id, version: 1}
		if there != nil {
			r.version, r.approved = there.RowVersion+1, there.Approved && outcome != campaign.Revive
		}
		r.contested.Store(there != nil)
		switch outcome {
		case campaign.Expired, campaign.Cancel:
			r.state = sink.StateExpired
			st.expired++
		case campaign.Held:
			r.state, r.hold = sink.StatePaused, campaign.Paused
		case campaign.Revive:
			r.revives, st.revives = there.HeldAt, true
		default:
		}
	}
}

// loseCampaign removes a row's clients from the step, and makes the decider and the
// steps behind leave the campaign alone.
func (c *committer) loseCampaign(st *step, r *campaignRow) {
	r.lost.Store(true)
	st.dropCampaign(r.liveCampaign)
	c.corrected.add(r.Key())
}
