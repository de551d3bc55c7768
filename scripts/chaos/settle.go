package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"

	"dinnerbell/internal/testenv"
	"dinnerbell/scripts/chaos/history"
	"dinnerbell/scripts/chaos/oracle"
	"dinnerbell/scripts/chaos/scenario"
)

// markerRestaurant has one client. The client's notifications show that the
// daemon has handled all messages before the markers.
const markerRestaurant = "marker"

// awaitSettled waits until the daemons have caught up and returns that moment.
// Then it subscribes clients to every restaurant, sends another marker to each
// partition and waits again. The clients are too late for every campaign and must
// not be notified; in a round with late subscribers they must all be, and the moment
// is the later one.
func (r *round) awaitSettled(ctx context.Context, v *oracle.Verdict) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, r.servers.opts.limit)
	defer cancel()
	healed := r.log.Now()
	r.log.Notef("the faults are over")
	err := r.sendMarkers(ctx, "marker", 1)
	if err == nil {
		err = r.awaitCaughtUp(ctx, history.Partitions, true)
	}
	r.recovery = r.log.Now() - healed
	if err == nil {
		err = r.awaitCaughtUp(ctx, history.Partitions, false)
	}
	settled := r.log.Now()
	r.log.Notef("caught up: %v", err)
	if err == nil {
		err = r.subscribeLate(ctx)
	}
	if err == nil {
		err = r.sendMarkers(ctx, "last", 2)
	}
	if err == nil {
		markers := 2 * history.Partitions
		if r.notifiesLateSubscribers() {
			markers *= 2 // the late marker client has them too
		}
		err = r.awaitCaughtUp(ctx, markers, false)
		if r.notifiesLateSubscribers() {
			settled = r.log.Now()
		}
	}
	if err != nil {
		v.Problemf("did not catch up within %s: %v", r.servers.opts.limit, err)
		return r.log.Now()
	}
	return settled
}

// sendMarkers subscribes the marker client and sends a campaign to each
// partition.
func (r *round) sendMarkers(ctx context.Context, name string, row int64) error {
	w := r.writers[0]
	if row == 1 {
		d := w.rows.NewDraft("marker")
		d.Insert(history.Subscription{Client: "marker client", Restaurant: markerRestaurant})
		if err := w.commitDraft(ctx, d); err != nil {
			return err
		}
	}
	defer w.closeConn()
	for p := range int32(history.Partitions) {
		f := w.round.producer.author.NewCampaign(time.Now().Unix())
		f.Campaign, f.Restaurant = fmt.Sprintf("%s-%d", name, p), markerRestaurant
		m := &history.Message{Kind: "marker", Partition: p, Value: w.round.producer.author.Encode(f), Fields: &f}
		if err := r.producer.sendMessage(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// subscribeLate subscribes one new client to every restaurant. In a round with late
// subscribers, a client of the marker restaurant follows in a transaction of its own:
// once a lane has notified it, the lane has handled every subscription before it.
func (r *round) subscribeLate(ctx context.Context) error {
	w := r.writers[0]
	defer w.closeConn()
	d := w.rows.NewDraft("late")
	for i := range scenario.Restaurants {
		d.Insert(history.Subscription{Client: fmt.Sprintf("late client %d", i), Restaurant: scenario.RestaurantName(i)})
	}
	if err := w.commitDraft(ctx, d); err != nil || !r.notifiesLateSubscribers() {
		return err
	}
	d = w.rows.NewDraft("late marker")
	d.Insert(history.Subscription{Client: "late marker client", Restaurant: markerRestaurant})
	err := w.commitDraft(ctx, d)
	r.lateSince = r.log.Now()
	return err
}

// awaitCaughtUp polls until two checks in a row find no work left. early
// ignores campaigns that wait for their start, and asks for one check only.
func (r *round) awaitCaughtUp(ctx context.Context, markers int, early bool) error {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	good := 0
	for {
		var err error
		if conn == nil || conn.IsClosed() {
			conn, err = r.servers.connectPostgres(ctx, r.database)
		}
		if err == nil {
			err = r.checkCaughtUp(ctx, conn, markers, early)
		}
		if err == nil {
			if good++; good == 2 || early {
				return nil
			}
		} else {
			good = 0
		}
		if errors.Is(err, errHalted) {
			return err
		}
		if !testenv.Pause(ctx, 100*time.Millisecond) {
			return err
		}
	}
}

// checkCaughtUp returns the work that is left as an error.
func (r *round) checkCaughtUp(ctx context.Context, conn *pgx.Conn, markers int, early bool) error {
	if err := r.checkIdle(ctx); err != nil {
		return err
	}
	var have, waiting int
	if err := conn.QueryRow(ctx, `SELECT count(*) FROM subscribers_feedback WHERE restaurant_id = $1`, markerRestaurant).Scan(&have); err != nil {
		return fmt.Errorf("count markers: %w", err)
	}
	if have != markers {
		return fmt.Errorf("%d of %d markers are in the feedback table", have, markers)
	}
	// Some campaigns of a round start hours later.
	if err := conn.QueryRow(ctx, `SELECT count(*) FROM dinnerbell.campaign WHERE state = 'pending' AND adv_campaign_datetime_start < extract(epoch FROM now()) + $1`, r.log.Life.Seconds()).Scan(&waiting); err != nil {
		return fmt.Errorf("count scheduled campaigns: %w", err)
	}
	if waiting > 0 && !early {
		return fmt.Errorf("%d campaigns are scheduled", waiting)
	}
	if left := r.log.LastStart(time.Now().Add(r.log.Life)) - time.Now().Unix(); left >= -1 && !early {
		return fmt.Errorf("a campaign starts in %d s", left)
	}
	return nil
}

// checkIdle asks the daemons: every lane must have one owner, must have read
// its partition to the end, and must have shipped every decided step.
func (r *round) checkIdle(ctx context.Context) error {
	ends, err := kadm.NewClient(r.admin).ListEndOffsets(ctx, r.topics.campaigns)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("ask for the end of the campaigns: %w", err)
	}
	owners := map[int32]string{}
	for _, d := range r.daemons {
		if !d.isRunning() {
			continue
		}
		s, err := d.fetchStatus(ctx)
		if err != nil {
			return err
		}
		for _, l := range s.Lanes {
			end, _ := ends.Lookup(r.topics.campaigns, l.Partition)
			switch {
			case owners[l.Partition] != "":
				return fmt.Errorf("lane %d is %s's and %s's", l.Partition, owners[l.Partition], d.name)
			case l.State != "running" || l.Decided != l.Shipped || l.NextOffset != end.Offset:
				return fmt.Errorf("lane %d of %s is not idle: %+v; the topic ends at %d; reasons %q", l.Partition, d.name, l, end.Offset, s.Reasons)
			}
			owners[l.Partition] = d.name
		}
		if s.Campaigns.Live > 0 {
			return fmt.Errorf("%s has %d live campaigns", d.name, s.Campaigns.Live)
		}
	}
	if len(owners) != history.Partitions {
		return fmt.Errorf("only lanes %v have an owner", owners)
	}
	return nil
}
