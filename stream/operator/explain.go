package operator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/precondition"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/explain"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
)

// EvidenceOptions are what the gathering of evidence needs beside the sinks.
type EvidenceOptions struct {
	LateSubscribers bool // join.late_subscribers
	// Owners returns what the running daemon says about its lanes, none where no daemon
	// answers, and the error that keeps it from owning any.
	Owners func(context.Context) (owners map[int32]*explain.Owner, noLanes string)
	// Subscriptions tells whether the client is subscribed to the restaurants, and what
	// could not be found out.
	Subscriptions func(ctx context.Context, client string, restaurants []string) ([]explain.Subscription, []explain.Gap)
	Limits        SearchLimits
}

// maxRestaurants is how many restaurants of one campaign are looked at.
const maxRestaurants = 50

// sinkTime bounds the reading of Postgres.
const sinkTime = 20 * time.Second

// GatherEvidence reads what the sinks and the topics have about a question. It changes
// nothing, and needs no daemon. A part that cannot be read becomes a gap of the evidence.
func GatherEvidence(ctx context.Context, cfg takeover.Config, q explain.Question, o EvidenceOptions) *explain.Evidence {
	cfg = cfg.WithDefaults()
	g := &gatherer{cfg: cfg, t: cfg.Sink.Tables(), o: o, e: &explain.Evidence{
		Question: q, Now: time.Now(), LateSubscribers: o.LateSubscribers, Start: cfg.Kafka.Start,
		FeedbackTable: cfg.Sink.Tables().Feedback, CampaignTable: cfg.Sink.Tables().Campaign,
	}}
	if o.Owners != nil {
		g.owners, g.e.NoLanes = o.Owners(ctx)
	}
	err := g.readSink(ctx)
	if _, ok := errors.AsType[*outboxError](err); ok {
		g.addUnread(explain.SourceOutbox, "which step has decided it, and whether it is shipped: ", err, "dinnerbell audit")
	} else if err != nil {
		g.e.Feedback, g.e.Step, g.e.Campaigns, g.e.Lanes = nil, nil, nil, nil
		for _, s := range []explain.Source{explain.SourceFeedback, explain.SourceOutbox, explain.SourceCampaign, explain.SourceLane} {
			g.addUnread(s, "what the sink has: ", err, "dinnerbell doctor, which names the cause")
		}
		return g.e // without the lanes' positions the topics tell nothing
	}
	g.readTopics(ctx)
	if o.Subscriptions != nil && g.e.Feedback == nil {
		subscriptions, gaps := o.Subscriptions(ctx, q.Client, g.e.Restaurants())
		g.e.Subscriptions, g.e.Gaps = subscriptions, append(g.e.Gaps, gaps...)
	}
	return g.e
}

// gatherer gathers the evidence about one question.
type gatherer struct {
	cfg    takeover.Config
	t      sink.Tables
	o      EvidenceOptions
	owners map[int32]*explain.Owner
	e      *explain.Evidence
	client id.ID // "": no subscription has such an id
}

func (g *gatherer) addGap(s explain.Source, what, tell string) {
	g.e.Gaps = append(g.e.Gaps, explain.Gap{Source: s, What: what, Tell: tell})
}

// addUnread adds the gap of a source that could not be read. tell is for an error without a
// remedy of its own.
func (g *gatherer) addUnread(s explain.Source, what string, err error, tell string) {
	text, remedy := precondition.CutRemedy(err.Error())
	cause := text
	if denied, ok := errors.AsType[*topic.DeniedError](err); ok {
		cause = denied.Right.Object + ": " + denied.Right.Found
	}
	if remedy != "" {
		tell = remedy + "; then dinnerbell explain again"
	}
	g.e.Gaps = append(g.e.Gaps, explain.Gap{Source: s, What: what + text, Tell: tell, Cause: cause})
}

// readSink reads the sink's Postgres, as of one moment.
func (g *gatherer) readSink(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sinkTime)
	defer cancel()
	conn, err := g.cfg.Sink.Connect(ctx, "dinnerbell explain")
	if err != nil {
		return err
	}
	defer sink.CloseConn(conn)
	return sink.ExplainDenied(ctx, conn, g.cfg.Sink, sink.ReadingRights, g.readSinkOver(ctx, conn))
}

func (g *gatherer) readSinkOver(ctx context.Context, conn *pgx.Conn) error {
	if err := sink.PlanByKeys(ctx, conn); err != nil {
		return err
	}
	if err := sink.CheckLayout(ctx, conn, g.t); err != nil {
		return err
	}
	found, err := sink.ReadCatalogue(ctx, conn, g.t)
	if err != nil {
		return err
	}
	if found.Feedback.OID == 0 {
		return fmt.Errorf("feedback table %s does not exist", g.t.Feedback)
	}
	if skew, _, err := sink.ClockSkew(ctx, conn, time.Now); err == nil {
		g.e.Now = time.Now().Add(-skew)
	}
	possible, err := g.checkIDs(ctx, conn, found.Feedback)
	if err != nil {
		return err
	}
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := g.readLanes(ctx, tx); err != nil || !possible {
			return err
		}
		if err := g.readCampaigns(ctx, tx); err != nil || g.e.Misfit != "" {
			return err
		}
		if found.Feedback.CampaignIDMisfit(g.e.Campaign) != "" {
			return nil // the table has no row of it
		}
		row, err := found.Feedback.ReadClientRow(ctx, tx, g.e.Campaign, g.e.Client)
		if err != nil || row == nil {
			return err
		}
		g.e.Feedback = &explain.FeedbackRow{Restaurant: row.Restaurant, Decided: time.Unix(row.Trigger, 0), Feedback: row.Feedback}
		if row.ID != nil {
			g.e.Feedback.ID = *row.ID
		}
		return g.findStep(ctx, tx)
	})
}

// checkIDs notes why the sinks cannot carry the client. possible reports whether the
// campaign table can hold the campaign.
func (g *gatherer) checkIDs(ctx context.Context, conn *pgx.Conn, table *sink.FeedbackTable) (possible bool, err error) {
	client, packErr := id.Pack(g.e.Client)
	g.client = client
	switch {
	case packErr != nil:
		g.e.Misfit = "its id is empty, longer than 1 MiB or not valid UTF-8, or holds U+0000"
	case len(g.e.Client) > campaign.MaxIDBytes:
		g.e.Misfit = fmt.Sprintf("its id has %d bytes, and client ids of more than %d bytes cannot be indexed", len(g.e.Client), campaign.MaxIDBytes)
	default:
		g.e.Misfit = table.ClientMisfit(client)
	}
	if g.e.Misfit == "" && !table.HoldsUnicode() {
		if g.e.Misfit, err = table.EncodingMisfit(ctx, conn, g.e.Client); err != nil {
			return false, err
		}
	}
	for _, text := range []string{g.e.Campaign, g.e.Restaurant} {
		if strings.IndexByte(text, 0) >= 0 || !utf8.ValidString(text) {
			return false, nil
		}
		if table.HoldsUnicode() {
			continue
		}
		if misfit, err := table.EncodingMisfit(ctx, conn, text); err != nil || misfit != "" {
			return false, err
		}
	}
	return true, nil
}

func (g *gatherer) readLanes(ctx context.Context, tx pgx.Tx) error {
	lanes, err := g.t.ReadLaneProgress(ctx, tx)
	for _, l := range lanes {
		g.e.Lanes = append(g.e.Lanes, explain.Lane{Lane: l.Lane, Decided: l.Decided, Shipped: l.Shipped, NextOffset: l.NextOffset, Owner: g.owners[l.Lane]})
	}
	return err
}

func (g *gatherer) readCampaigns(ctx context.Context, tx pgx.Tx) error {
	rows, err := g.t.ReadCampaignDetails(ctx, tx, g.e.Campaign, g.e.Restaurant, maxRestaurants+1)
	if err != nil {
		return err
	}
	if len(rows) == 0 && g.e.Restaurant != "" { // perhaps it has others
		if rows, err = g.t.ReadCampaignDetails(ctx, tx, g.e.Campaign, "", 3); err != nil {
			return err
		}
	}
	if len(rows) > maxRestaurants {
		rows, g.e.MoreCampaigns = rows[:maxRestaurants], true
	}
	for i := range rows {
		r := &rows[i]
		to := explain.CampaignRow{
			Restaurant: r.Restaurant, Lane: r.Lane, Version: r.Version, MessageOn: r.MessageLane, MessageAt: r.MessageOffset, Sent: time.UnixMilli(r.MessageTime),
			Start: time.Unix(r.Start, 0), End: time.Unix(r.End, 0), State: r.State, Cursor: r.Cursor, Accepted: r.Accepted,
			Audience: r.Audience, Notified: r.Notified, Approved: r.Approved, Command: r.Command, Refusal: r.Refusal,
		}
		if r.CommandTime > 0 {
			to.Commanded = time.UnixMilli(r.CommandTime)
		}
		if r.State == sink.StateFinished { // one step has accepted and finished it
			to.Started, to.Finished = r.Accepted, r.Accepted
		}
		if r.Started != nil {
			to.Started = *r.Started
		}
		if r.Finished != nil {
			to.Finished = *r.Finished
		}
		g.e.Campaigns = append(g.e.Campaigns, to)
	}
	return nil
}

// outboxError is the error of the outbox. What was read of the other tables before stands.
type outboxError struct{ err error }

func (e *outboxError) Error() string { return e.err.Error() }
func (e *outboxError) Unwrap() error { return e.err }

// findStep looks for the step of the client's row in the outboxes: first in that of the
// lane which delivers the campaign.
func (g *gatherer) findStep(ctx context.Context, tx pgx.Tx) error {
	order := make([]*explain.Lane, 0, len(g.e.Lanes)+1)
	for i := range g.e.Lanes {
		l := &g.e.Lanes[i]
		order = append(order, l)
		for j := range g.e.Campaigns {
			if r := &g.e.Campaigns[j]; r.Restaurant == g.e.Feedback.Restaurant && r.Lane == l.Lane {
				order = append([]*explain.Lane{l}, order[:len(order)-1]...)
			}
		}
	}
	for _, l := range order {
		seq, found, err := g.t.FindInOutbox(ctx, tx, l.Lane, -1, g.e.Campaign, g.client)
		if err != nil {
			return &outboxError{err}
		}
		if found {
			g.e.Step = &explain.Step{Lane: l.Lane, Seq: seq, Shipped: l.Shipped}
			return nil
		}
	}
	return nil
}
