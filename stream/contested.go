package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/failpoint"
	"dinnerbell/state/id"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
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
			n := &insertion{claim: c.claim, letters: c.letters, misses: &c.lane.svc.counters.deliveredMisses, pick: k, trigger: st.trigger, written: &id.List{}}
			if err := n.all(ctx); err != nil {
				return err
			}
			clients = n.written
			p.Dead = append(p.Dead, n.refusals()...)
			if n.campaign != nil {
				st.noteRefused(k.live)
			}
		}
		if clients.Len() > 0 {
			p.Segments = append(p.Segments, record.Segment{Campaign: k.live.Campaign, Trigger: st.trigger, Clients: clients, Template: k.wire})
		}
	}
	return nil
}

// insertion writes one pick's rows.
type insertion struct {
	claim   *takeover.Claim
	letters letterMaker
	misses  *atomic.Int64 // clients whom Postgres knew and the delivered cache did not
	pick    *clientPick
	trigger int64

	written  *id.List            // those that were new
	campaign *pgconn.PgError     // why no client of it can have a row
	leftOut  map[string][]string // reason → clients whose row alone is refused
}

// probes is how many clients are tried alone before a refusal that does not name
// what it is about counts as the campaign's.
const probes = 8

// all writes the rows. Where the table has refused the campaign's rows before,
// it finds the rows that it refuses: it halves what is refused, at most twice as
// many statements as there are clients. A constraint that does not look at the
// client refuses the whole campaign, and so does what refuses a handful of
// clients in the same words.
func (n *insertion) all(ctx context.Context) error {
	texts := make([]string, n.pick.clients.Len())
	for i := range texts {
		texts[i] = n.pick.clients.At(i).Text()
	}
	if !n.pick.live.guarded.Load() {
		err := n.insert(ctx, texts)
		if e, ok := errors.AsType[*pgconn.PgError](err); ok && sink.RefusesRow(e) {
			return fmt.Errorf("insert feedback rows: %w: %w", sink.ErrRowRefused, err)
		}
		return err
	}
	refused, err := n.try(ctx, texts)
	if err != nil || refused == nil {
		return err
	}
	if err := n.checkTable(ctx); err != nil {
		return err
	}
	about, err := n.concerns(ctx, refused)
	switch {
	case err != nil:
		return err
	case about == refusesCampaign:
		n.campaign = refused
		return nil
	case about == refusesUnknown && len(texts) > probes:
		if texts, err = n.probe(ctx, texts); err != nil || n.campaign != nil {
			return err
		}
	}
	return n.halve(ctx, texts)
}

// checkTable returns the precondition that the table violates now, if there is
// one: a sequence at its end refuses rows too, and no row is to blame.
func (n *insertion) checkTable(ctx context.Context) error {
	c, err := sink.ReadCatalogue(ctx, n.claim.Conn, n.claim.Tables)
	if err != nil {
		return err
	}
	return c.Report().Unmet(nil)
}

// probe tries some clients alone and returns the others.
func (n *insertion) probe(ctx context.Context, texts []string) (rest []string, err error) {
	every := len(texts) / probes
	var first *pgconn.PgError
	same := true
	for i, text := range texts {
		if i%every != 0 || i/every >= probes {
			rest = append(rest, text)
			continue
		}
		refused, err := n.try(ctx, []string{text})
		if err != nil {
			return nil, err
		}
		if first == nil {
			first = refused
		}
		if same = same && refused != nil && refused.Code == first.Code && refused.Message == first.Message; refused != nil {
			n.leaveOut(text, refused)
		}
	}
	if same {
		n.campaign, n.leftOut = first, nil
	}
	return rest, nil
}

// halve writes the rows that the table takes and leaves out the others.
func (n *insertion) halve(ctx context.Context, texts []string) error {
	if len(texts) == 0 || n.campaign != nil {
		return nil //nolint:nilerr // what the table has against the campaign is no error of ours
	}
	refused, err := n.try(ctx, texts)
	if err != nil || refused == nil {
		return err
	}
	about, err := n.concerns(ctx, refused)
	switch {
	case err != nil:
		return err
	case about == refusesCampaign:
		n.campaign = refused
		return nil
	case len(texts) == 1:
		n.leaveOut(texts[0], refused)
		return nil
	}
	if err := n.halve(ctx, texts[:len(texts)/2]); err != nil {
		return err
	}
	return n.halve(ctx, texts[len(texts)/2:])
}

func (n *insertion) leaveOut(text string, refused *pgconn.PgError) {
	if n.leftOut == nil {
		n.leftOut = map[string][]string{}
	}
	why := n.explain(refused)
	n.leftOut[why] = append(n.leftOut[why], text)
}

// try inserts rows, all or none. It returns what the table has against them.
func (n *insertion) try(ctx context.Context, texts []string) (refused *pgconn.PgError, err error) {
	if _, err := n.claim.Conn.Exec(ctx, `SAVEPOINT rows`); err != nil {
		return nil, fmt.Errorf("set savepoint: %w", err)
	}
	err = n.insert(ctx, texts)
	after := `RELEASE SAVEPOINT rows`
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && sink.RefusesRow(e) {
		refused, err, after = e, nil, `ROLLBACK TO SAVEPOINT rows`
	}
	if err != nil {
		return nil, err
	}
	if _, err := n.claim.Conn.Exec(ctx, after); err != nil {
		return nil, fmt.Errorf("end savepoint: %w", err)
	}
	return refused, nil
}

// insert writes rows where there is none yet, and adds the clients of those that
// were written. A client that Postgres did not return must have a row already.
func (n *insertion) insert(ctx context.Context, texts []string) error {
	var left []string
	for range 2 { // somebody may delete a row in between
		returned, err := n.insertOnce(ctx, texts)
		if err != nil {
			return err
		}
		for _, id := range returned {
			n.written.Append(id)
		}
		if len(returned) == len(texts) {
			return nil
		}
		if left, err = n.withoutRow(ctx, texts); err != nil || len(left) == 0 {
			n.misses.Add(int64(len(texts) - len(returned)))
			return err
		}
		texts = left
	}
	return n.dropped(fmt.Sprintf("it stores no row for %d clients of campaign %s, %s the first, and gives no error", len(left), n.pick.live.ID, left[0]))
}

func (n *insertion) insertOnce(ctx context.Context, texts []string) ([]id.ID, error) {
	c := n.pick.live.Campaign
	rows, err := n.claim.Conn.Query(ctx, n.claim.Feedback.InsertSQL(), c.RestaurantID, c.ID, c.Content, c.Owner, c.OwnerContact, c.Start, c.End, c.Created, n.trigger, texts)
	if err != nil {
		return nil, err
	}
	asked := map[string]bool{}
	if len(n.claim.Feedback.Triggers) > 0 {
		for _, text := range texts {
			asked[text] = true
		}
	}
	var returned []id.ID
	var changed string
	var campaign, text, other string
	_, err = pgx.ForEachRow(rows, []any{&campaign, &text, &other}, func() error {
		switch {
		case len(n.claim.Feedback.Triggers) == 0:
		case campaign != c.ID || !asked[text]:
			changed = fmt.Sprintf("it stores campaign %s, client %s in the place of a row of campaign %s", campaign, text, c.ID)
		case other != "":
			changed = fmt.Sprintf("it stores another %s than campaign %s, client %s has: row and record would differ", other, campaign, text)
		}
		id, err := id.Pack(text)
		returned = append(returned, id)
		return err
	})
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && !sink.RefusesRow(e) {
		err = fmt.Errorf("insert feedback rows: %w", sink.WithFunction(e))
	}
	if err == nil && changed != "" {
		err = n.dropped(changed)
	}
	return returned, err
}

// withoutRow lists the clients that have no row of the campaign.
func (n *insertion) withoutRow(ctx context.Context, texts []string) ([]string, error) {
	rows, err := n.claim.Conn.Query(ctx, n.claim.Feedback.MissingSQL(""), n.pick.live.ID, texts)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// dropped halts: a notification without its row, or with another one, must not
// be sent, and nobody can know what the table wants instead.
func (n *insertion) dropped(what string) error {
	return n.claim.DroppedRowsHalt(what)
}
