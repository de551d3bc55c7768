package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/cmd/dinnerbell/internal/status"
	"dinnerbell/internal/testenv/workload"
)

// roundLimit is how long a round may take until all is delivered.
const roundLimit = time.Minute

// calm is the number of polls in a row that must find everything done: a campaign
// that moves from one queue of the daemon to the next is in neither for a moment.
const calm = 10

// roundResult is the output of `demo --once --json`; scripts read its keys.
type roundResult struct {
	Campaigns     int     `json:"campaigns"`     // messages sent, those that notify nobody included
	Notifications int     `json:"notifications"` // records that a read_committed consumer sees
	FeedbackRows  int64   `json:"feedback_rows"`
	Missing       int64   `json:"missing"`    // in either sink
	Duplicates    int64   `json:"duplicates"` // in either sink
	Seconds       float64 `json:"seconds"`    // from the first campaign sent to the last notification
}

// plannedMessage is one entry of the round.
type plannedMessage struct {
	workload.Campaign
	raw      []byte // sent instead of the campaign, if set
	notifies bool   // its audience is expected to be notified
	prepare  string // SQL that commits right before it is sent
	dead     bool   // belongs to the dead letters
}

// oddRestaurant and its clients have ids that are no UUIDs and need care in keys.
const oddRestaurant = "Trattoria: 50% & più"

const oddSubscriptions = `INSERT INTO subscribers_restaurants (client_id, restaurant_id)
	SELECT 'cliënt:' || n || '%', '` + oddRestaurant + `' FROM generate_series(1, 100) n`

// planMessages returns the messages of a round: every kind of campaign that the
// contract distinguishes.
func planMessages(p population, now time.Time) []plannedMessage {
	var out []plannedMessage
	add := func(id string, k int, start time.Time) *plannedMessage {
		out = append(out, plannedMessage{Campaign: newCampaign(id, p.restaurants[k], len(out), start), notifies: true})
		return &out[len(out)-1]
	}
	last := len(p.restaurants) - 1
	add("the-largest", 0, now)
	for i := range 14 { // all sizes, each restaurant once
		add(fmt.Sprintf("plain-%d", i), 1+i*(last-6)/14, now)
	}
	add("same-restaurant", 0, now)
	again := *add("repeated", last, now)
	out = append(out, again) // the very same message
	add("scheduled", last-1, now.Add(2*time.Second))
	add("fresh", last-2, now).prepare = fmt.Sprintf(
		`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('came just before', '%s')`, p.restaurants[last-2])
	add("left", last-3, now).prepare = fmt.Sprintf(
		`DELETE FROM subscribers_restaurants WHERE restaurant_id = '%[1]s' AND id = (SELECT min(id) FROM subscribers_restaurants WHERE restaurant_id = '%[1]s')`,
		p.restaurants[last-3])
	add("two-rows", last-4, now).prepare = fmt.Sprintf(
		`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT client_id, restaurant_id FROM subscribers_restaurants WHERE restaurant_id = '%s'`,
		p.restaurants[last-4])
	odd := add("odd: 100%", 0, now)
	odd.Restaurant, odd.prepare = oddRestaurant, oddSubscriptions
	add("nobody", 0, now).Restaurant = "a restaurant without subscribers"
	expired := add("expired", last-5, now.Add(-2*time.Hour))
	expired.notifies = false
	out = append(out,
		plannedMessage{raw: []byte("not JSON"), dead: true},
		plannedMessage{raw: []byte(`{"restaurant_id":"` + p.restaurants[0] + `","adv_campaign_id":"half"}`), dead: true},
	)
	return append(out, again) // once more, when the first may be long done
}

// runOnce sends one round, waits until all of it has been worked off, and checks it.
func (d *deployment) runOnce(ctx context.Context) error {
	if _, err := d.db.Exec(ctx, checkTables); err != nil {
		return fmt.Errorf("create check tables: %w", err)
	}
	if _, err := d.db.Exec(ctx, expectView); err != nil {
		return fmt.Errorf("create check views: %w", err)
	}
	messages := planMessages(d.people, time.Now())
	d.sayf("sending %d campaigns", len(messages))
	began := time.Now()
	dead := 0
	for i, m := range messages {
		if err := d.sendOne(ctx, i, m); err != nil {
			return err
		}
		if m.dead {
			dead++
		}
	}
	took, err := d.awaitSettled(ctx, began)
	if ctx.Err() != nil {
		return err
	}
	if err != nil {
		d.sayf("going on to check all the same: %v", err) // and list the missing notifications
	}
	d.sayf("checking both sinks against a join in SQL")
	res, problems, err := d.checkResult(ctx, dead)
	if err != nil {
		return err
	}
	res.Campaigns, res.Seconds = len(messages), float64(took.Milliseconds())/1000
	if err := d.printResult(res); err != nil {
		return err
	}
	for _, p := range problems {
		d.sayf("WRONG: %s", p)
	}
	if len(problems) > 0 {
		return ErrWrong
	}
	return nil
}

// sendOne commits the subscription changes that precede a campaign, records the
// expected notifications, and sends the campaign.
func (d *deployment) sendOne(ctx context.Context, i int, m plannedMessage) error {
	if m.prepare != "" {
		if _, err := d.db.Exec(ctx, m.prepare); err != nil {
			return fmt.Errorf("prepare campaign %s: %w", m.ID, err)
		}
	}
	if m.raw != nil {
		return d.produceMessage(ctx, fmt.Sprintf("dead-%d", i), m.raw)
	}
	if m.notifies {
		if _, err := d.db.Exec(ctx, `INSERT INTO demo.campaign SELECT $1, $2, $3 WHERE NOT EXISTS (SELECT FROM demo.campaign WHERE id = $1)`,
			m.ID, m.Restaurant, m.JSON()); err != nil {
			return fmt.Errorf("note campaign %s: %w", m.ID, err)
		}
	}
	return d.produceMessage(ctx, m.ID, m.JSON())
}

// awaitSettled waits until everything expected has been shipped and nothing is
// under way any more, and returns how long that took since began.
func (d *deployment) awaitSettled(ctx context.Context, began time.Time) (time.Duration, error) {
	var expected int64
	if err := d.db.QueryRow(ctx, countExpected).Scan(&expected); err != nil {
		return 0, fmt.Errorf("count expected notifications: %w", err)
	}
	var since time.Time
	polls := 0
	err := d.daemon.AwaitReady(ctx, roundLimit, pollEvery, func(ctx context.Context) error {
		if err := d.awaitNotifications(ctx, expected); err != nil {
			polls = 0
			return err
		}
		if polls++; polls == 1 {
			since = time.Now()
		}
		if polls < calm {
			return errors.New("only just calm")
		}
		return nil
	})
	if since.IsZero() {
		since = time.Now()
	}
	return since.Sub(began), err
}

// awaitNotifications returns nil when the daemon has read all campaigns, has no
// campaign under way or scheduled, and has shipped all decided notifications and at
// least the expected number.
func (d *deployment) awaitNotifications(ctx context.Context, expected int64) error {
	ends, err := kadm.NewClient(d.producer).ListEndOffsets(ctx, topicIn)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("list end of %s: %w", topicIn, err)
	}
	body, err := d.getStatus(ctx, "/api/status")
	if err != nil {
		return err
	}
	var s status.Report
	if err := json.Unmarshal(body, &s); err != nil {
		return fmt.Errorf("read status: %w", err)
	}
	var read, written int64
	ends.Each(func(o kadm.ListedOffset) { written += o.Offset })
	for _, l := range s.Lanes {
		read += l.NextOffset
		if l.Decided != l.Shipped {
			return fmt.Errorf("lane %d has shipped %d of %d steps", l.Partition, l.Shipped, l.Decided)
		}
	}
	if s.Figures != nil {
		return errors.New("a lane does not run")
	}
	if shipped := s.Notifications.Shipped; shipped < expected {
		return fmt.Errorf("%d of %d notifications are shipped", shipped, expected)
	}
	if live, scheduled := s.Campaigns.Live, s.Campaigns.Scheduled; len(s.Lanes) != lanes || read != written || live+scheduled > 0 {
		return fmt.Errorf("%d of %d messages read, %d campaigns live, %d scheduled", read, written, live, scheduled)
	}
	return nil
}

// checkResult compares both sinks with the join. It returns the differences as
// texts.
func (d *deployment) checkResult(ctx context.Context, dead int) (roundResult, []string, error) {
	var res roundResult
	records, err := d.readAll(ctx, topicOut)
	if err != nil {
		return res, nil, err
	}
	res.Notifications = len(records)
	if err := d.loadReceived(ctx, records); err != nil {
		return res, nil, err
	}
	letters, err := d.readAll(ctx, topicDead)
	if err != nil {
		return res, nil, err
	}
	var expected, unexpected, different int64
	for _, q := range []struct {
		sql  string
		into *int64
	}{
		{countExpected, &expected},
		{`SELECT count(*) FROM demo.rows`, &res.FeedbackRows},
		{countMissing, &res.Missing},
		{countDuplicates, &res.Duplicates},
		{countUnexpected, &unexpected},
		{countDifferent, &different},
	} {
		if err := d.db.QueryRow(ctx, q.sql).Scan(q.into); err != nil {
			return res, nil, fmt.Errorf("check: %s: %w", q.sql, err)
		}
	}
	var problems []string
	found := func(wrong bool, format string, args ...any) {
		if wrong {
			problems = append(problems, fmt.Sprintf(format, args...))
		}
	}
	found(expected == 0, "nothing was expected; the check itself is broken")
	found(res.Missing > 0, "%d of %d expected notifications are missing in a sink", res.Missing, expected)
	found(res.Duplicates > 0, "%d notifications are there more than once", res.Duplicates)
	found(unexpected > 0, "%d notifications went to clients that should not get them", unexpected)
	found(different > 0, "%d records differ from their campaign, their row, or their key's form", different)
	found(len(letters) != dead, "%d dead letters instead of %d", len(letters), dead)
	return res, problems, nil
}

// loadReceived puts the records into a table, so that the check is one join.
func (d *deployment) loadReceived(ctx context.Context, records []*kgo.Record) error {
	_, err := d.db.CopyFrom(ctx, pgx.Identifier{"demo", "received"}, []string{"key", "value"},
		pgx.CopyFromSlice(len(records), func(i int) ([]any, error) {
			return []any{string(records[i].Key), json.RawMessage(records[i].Value)}, nil
		}))
	if err != nil {
		return fmt.Errorf("load received records: %w", err)
	}
	if _, err := d.db.Exec(ctx, "ANALYZE"); err != nil {
		return fmt.Errorf("analyze: %w", err)
	}
	return nil
}

func (d *deployment) printResult(r roundResult) error {
	if d.opts.JSON {
		return d.printJSON(r)
	}
	if _, err := fmt.Fprintf(d.opts.Stdout, "%d campaigns, %d notifications, %d feedback rows, %d missing, %d duplicates, %.1f s\n",
		r.Campaigns, r.Notifications, r.FeedbackRows, r.Missing, r.Duplicates, r.Seconds); err != nil {
		return errors.Join(errors.New("write result"), err)
	}
	return nil
}
