package operator

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/halt"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
)

// Choice is the loss that an operator accepts where Postgres and Kafka contradict each
// other. There is no choice without a loss: the lost data named the clients who have a
// campaign.
type Choice string

// The choices of Resolve.
const (
	// AcceptRepeats: no client is missed, some may be notified again.
	AcceptRepeats Choice = "repeats"
	// AcceptMissing: no client is notified again, some may be missed.
	AcceptMissing Choice = "missing"
)

// Resolve mends a halted lane and returns a line for each change. It refuses a lane with a
// running daemon, then takes the lane over, so that a daemon that starts meanwhile is
// fenced. Without a contradiction it changes nothing.
func Resolve(ctx context.Context, cfg takeover.Config, laneID int32, accept Choice) (did []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*takeover.Timeout)
	defer cancel()
	claim := takeover.New(cfg.WithDefaults(), laneID, takeover.Options{})
	defer claim.Close()
	if err := claim.CheckNoOwner(ctx); err != nil {
		return nil, err
	}
	if err := claim.Connect(ctx); err != nil {
		return nil, err
	}
	if err := claim.Fence(ctx); err != nil {
		return nil, err
	}
	r := &resolution{claim: claim, accept: accept, newSeq: claim.Decided, newNext: claim.NextOffset}
	for _, part := range []struct {
		check  func(context.Context) error
		broken *bool
	}{{claim.CheckSinks, &r.sinks}, {claim.CheckInput, &r.input}} {
		err := part.check(ctx)
		found, halted := errors.AsType[*halt.Error](err)
		if err != nil && !halted {
			return nil, err
		}
		if *part.broken = halted; halted {
			r.report("lane %d: %s", laneID, found.What)
		}
	}
	if !r.sinks && !r.input {
		return []string{fmt.Sprintf("lane %d: nothing to resolve", laneID)}, nil
	}
	if err := pgx.BeginFunc(ctx, claim.Conn, func(tx pgx.Tx) error { return r.mendLane(ctx, tx) }); err != nil {
		return r.did, err
	}
	if claim.ProgressLost != nil {
		// The lane now counts from this K; without a record the next takeover would halt again.
		if err := topic.WriteProgress(ctx, claim.Client, claim.Config.Kafka.Progress, claim.Lane, claim.Shipped); err != nil {
			return r.did, fmt.Errorf("write progress of lane %d: %w", laneID, err)
		}
		r.report("topic %s says again that steps up to %d are shipped", claim.Config.Kafka.Progress, claim.Shipped)
	}
	return r.did, nil
}

// resolution is one run of Resolve.
type resolution struct {
	claim   *takeover.Claim
	accept  Choice
	sinks   bool // the sinks contradict each other
	input   bool // the campaigns topic does not hold the lane's next offset
	did     []string
	newSeq  int64 // the new P
	newNext int64 // the new next_offset
}

// report notes one change for the operator.
func (r *resolution) report(format string, args ...any) { //nolint:goprintffuncname // go vet knows a printf wrapper by its body; the callers make sentences
	r.did = append(r.did, fmt.Sprintf(format, args...))
}

// mendLane makes the lane agree with Kafka as it is. Sinks that agree are left alone: the
// next owner ships the steps that are decided and not shipped.
func (r *resolution) mendLane(ctx context.Context, tx pgx.Tx) error {
	// The transaction is idle while Postgres sorts the rows for the other connection.
	if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
		return fmt.Errorf("set up sink session: %w", err)
	}
	if r.input {
		if err := r.mendInput(ctx, tx); err != nil {
			return err
		}
	}
	shipped, topicEnds := r.claim.ShippedBefore, r.claim.EndsBefore
	if r.sinks {
		shipped, topicEnds = r.claim.Shipped, []int64{}
		if err := r.mendSinks(ctx, tx); err != nil {
			return err
		}
	}
	err := r.claim.Tables.MendLane(ctx, tx, &sink.LanePosition{
		Lane: r.claim.Lane, Epoch: r.claim.Epoch, Decided: r.newSeq, Shipped: shipped, TopicEnds: topicEnds, NextOffset: r.newNext,
		Cluster: r.claim.IDs.Cluster, Campaigns: r.claim.IDs.Campaigns, Notifications: r.claim.IDs.Notifications, Progress: r.claim.IDs.Progress,
	})
	if errors.Is(err, sink.ErrTakenOver) {
		return fmt.Errorf("a daemon has taken lane %d over meanwhile; stop every daemon and run this again: %w", r.claim.Lane, err)
	}
	if err != nil {
		return err
	}
	r.report("the lane goes on with step %d, at offset %d of topic %s; start the daemon again", r.newSeq+1, r.newNext, r.claim.Config.Kafka.Campaigns)
	return nil
}

// mendSinks has the lane count on from K. The outbox does not prove which records Kafka has,
// so mendSinks empties it and keeps only its dead letters: a second dead letter does less
// harm than none.
func (r *resolution) mendSinks(ctx context.Context, tx pgx.Tx) error {
	rolledBack := r.claim.Shipped > r.claim.Decided // Postgres was rolled back; otherwise Kafka was
	r.newSeq = r.claim.Shipped
	dead, err := r.clearOutbox(ctx, tx)
	if err != nil {
		return err
	}
	if len(dead) > 0 {
		r.report("%d dead letters are sent to topic %s, some of them perhaps again", len(dead), r.claim.Config.Kafka.DeadLetters)
		if err := r.addStep(ctx, tx, &record.Payload{Dead: dead}); err != nil {
			return err
		}
	}
	switch {
	case rolledBack && r.accept == AcceptMissing:
		return r.giveUpLive(ctx, tx)
	case rolledBack:
		r.report("campaigns are delivered on as Postgres remembers them; clients whose rows were lost get them again")
	case r.accept == AcceptRepeats:
		return r.shipAgain(ctx, tx)
	default:
		r.report("what was decided and not seen as shipped is not sent again; its rows stay in %s", r.claim.Tables.Feedback)
	}
	return nil
}

// clearOutbox deletes the lane's outbox and returns the dead letters of the steps that were
// not shipped, as far as these can be read.
func (r *resolution) clearOutbox(ctx context.Context, tx pgx.Tx) ([]record.DeadLetter, error) {
	payloads, damaged, err := r.claim.Tables.ClearOutbox(ctx, tx, r.claim.Lane)
	if err != nil {
		return nil, err
	}
	for _, seq := range damaged {
		r.report("step %d of the outbox cannot be read and is given up", seq)
	}
	var dead []record.DeadLetter
	for _, p := range payloads {
		if p.Seq > r.claim.Shipped {
			dead = append(dead, p.Dead...)
		}
	}
	return dead, nil
}

// addStep adds one step to the outbox.
func (r *resolution) addStep(ctx context.Context, tx pgx.Tx, p *record.Payload) error {
	r.newSeq++
	p.Seq = r.newSeq
	return r.claim.Tables.AddToOutbox(ctx, tx, r.claim.Lane, p)
}

// mendInput moves next_offset to an offset that the topic holds. A log that was created anew
// or cut is read from its beginning, unless the operator accepted missing clients: all of
// its messages are new, and Postgres knows the clients who have a campaign already. The
// campaigns' offsets belong to the former log then; they are reset, so that the new log's
// messages do not look old.
func (r *resolution) mendInput(ctx context.Context, tx pgx.Tx) error {
	start, end, err := r.claim.ReadInputRange(ctx)
	if err != nil {
		return err
	}
	anew := r.claim.HasNewInput() || r.newNext > end
	switch {
	case r.claim.HasNewInput(), r.newNext > end && r.accept == AcceptRepeats:
		r.newNext = start
	case r.newNext > end:
		r.newNext = end
	default:
		r.report("campaigns at offsets %d to %d are gone and are not delivered", r.newNext, start-1)
		r.newNext = start
	}
	if !anew {
		return nil
	}
	return r.claim.Tables.ResetOffsets(ctx, tx, r.claim.Lane)
}

// giveUpLive finishes the pending campaigns and skips the messages since the point to which
// Postgres was rolled back: nobody knows any more which clients have these campaigns.
func (r *resolution) giveUpLive(ctx context.Context, tx pgx.Tx) error {
	pending, err := r.claim.Tables.FinishPending(ctx, tx, r.claim.Lane)
	if err != nil {
		return err
	}
	_, end, err := r.claim.ReadInputRange(ctx)
	if err != nil {
		return err
	}
	r.report("%d campaigns that were scheduled or under way are given up; offsets %d to %d are skipped", pending, r.newNext, end-1)
	r.newNext = end
	return nil
}

// shipAgain fills the outbox from the feedback rows of the lane's campaigns that are still
// valid: the records that Kafka lost are among them. It leaves out rows with feedback, whose
// clients were reached. It reads on a second connection while it writes on the first.
func (r *resolution) shipAgain(ctx context.Context, tx pgx.Tx) error {
	reader, err := r.claim.Config.Sink.Connect(ctx, "dinnerbell resolve") // planned for many rows; a lane's connections are planned for few
	if err != nil {
		return err
	}
	defer sink.CloseConn(reader)
	build, bytes, total := &record.Payload{}, 0, 0
	flush := func() error {
		if build.Notifications() == 0 {
			return nil
		}
		total += build.Notifications()
		err := r.addStep(ctx, tx, build)
		build, bytes = &record.Payload{}, 0
		return err
	}
	err = r.claim.Tables.EachValidRow(ctx, reader, r.claim.Feedback, r.claim.Lane, func(row *sink.FeedbackRow) error {
		if err := build.Add(row.Campaign, row.Trigger, row.Client); err != nil {
			return err
		}
		if bytes += row.Campaign.Size(); bytes >= r.claim.Config.StepBytes || build.Notifications() >= r.claim.Config.StepClients {
			return flush()
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return fmt.Errorf("send notifications again: %w", err)
	}
	r.report("%d notifications of campaigns that are still valid are sent to topic %s again", total, r.claim.Config.Kafka.Notifications)
	return nil
}
