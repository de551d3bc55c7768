package stream

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/topic"
)

//go:embed testdata/layout1.sql
var layout1 string

//go:embed testdata/layout2.sql
var layout2 string

//go:embed testdata/layout3.sql
var layout3 string

// A deployment of layout 1 in the middle of everything: a step that is not shipped
// (its payload is of version 1), a fan-out with its cursor, a campaign that waits
// for its start, finished ones. setup brings its tables up, a daemon of the former
// layout loses its lanes by that, and everybody has everything once.
func TestSetupBringsALayoutUp(t *testing.T) {
	t.Parallel()
	few := clients("0000", 20)
	w := newDeployment(t, 2, map[string][]string{"r1": few})
	w.uncounted = true
	w.db.Exec(`DROP SCHEMA dinnerbell CASCADE`)
	w.db.Exec(layout1)
	now := time.Now()
	live, shipped, done, scheduled := w.campaign("live", "r1"), w.campaign("undelivered", "r1"), w.campaign("done", "r1"), w.campaign("scheduled", "r1")
	scheduled.Start = now.Unix() + 5
	for i, c := range []campaign.Campaign{done, shipped, live, scheduled} { // as the topic has them
		w.produceAt(0, now.Add(time.Duration(i-1000)*time.Millisecond), encodeCampaign(c))
	}
	w.ownRow(0, 4, 1)
	w.ownRow(1, 0, 0)
	for i, c := range []struct {
		campaign.Campaign
		state  string
		cursor id.ID
		have   []string
	}{{done, sink.StateFinished, packID(t, few[19]), few}, {shipped, sink.StateFinished, packID(t, few[19]), few}, {live, sink.StatePending, packID(t, few[6]), few[:7]}, {scheduled, sink.StatePending, "", nil}} {
		content := c.Fingerprint()
		w.db.Exec(`INSERT INTO dinnerbell.campaign (adv_campaign_id, restaurant_id, lane, msg_offset, msg_time, fingerprint, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
 adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, state, cursor) VALUES ($1, $2, 0, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
			c.ID, c.RestaurantID, i, now.UnixMilli()-1000, content[:], c.Content, c.Owner, c.OwnerContact, c.Start, c.End, c.Created, c.state, []byte(c.cursor))
		w.db.Exec(`INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
 adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created) SELECT $1, $2, $3, $4, $5, $6, $7, $8, c, $9 FROM unnest($10::text[]) c`,
			c.RestaurantID, c.ID, c.Content, c.Owner, c.OwnerContact, c.Start, c.End, c.Created, now.Unix()-5, c.have)
	}
	p := &record.Payload{Seq: 1}
	for _, c := range []struct {
		campaign.Campaign
		have []string
	}{{done, few}, {shipped, few}, {live, few[:7]}} {
		list := &id.List{}
		for _, client := range c.have {
			list.Append(packID(t, client))
		}
		p.Segments = append(p.Segments, record.Segment{Campaign: &c.Campaign, Trigger: now.Unix() - 5, Clients: list})
	}
	payload := p.Encode()
	payload[2] = 1 // without dead letters, the versions differ by their number alone
	end := len(payload) - 4
	binary.BigEndian.PutUint32(payload[end:], crc32.Checksum(payload[:end], crc32.MakeTable(crc32.Castagnoli)))
	w.db.Exec(`INSERT INTO dinnerbell.outbox VALUES (0, 1, $1, $2)`, p.Notifications(), payload)

	// The daemon does not begin on the former layout, and names what mends it.
	svc, stop := w.start()
	envtest.Until(t, patience, func() error {
		if s := svc.Status().LastError; !strings.Contains(s, "layout 1") || !strings.Contains(s, "dinnerbell setup") {
			return fmt.Errorf("last error %q", s)
		}
		return nil
	})
	w.db.Exec(`CREATE PUBLICATION everything FOR ALL TABLES`) // as change data capture has it
	did, err := sink.Setup(t.Context(), w.cfg.Sink)
	if err != nil || !strings.Contains(strings.Join(did, "\n"), "brought to layout 4") {
		t.Fatalf("setup: %q, %v", did, err)
	}
	want := map[string][]string{"done": few, "undelivered": few, "live": few, "scheduled": few}
	w.expect(want)
	for _, n := range w.rows() {
		if n.ID == "scheduled" && n.trigger < scheduled.Start {
			t.Errorf("decided at %d, before its start %d", n.trigger, scheduled.Start)
		}
	}
	// A repeat and an edit of campaigns that were accepted under the former layout.
	live.Content = "edited"
	w.produce(1, encodeCampaign(done), encodeCampaign(live))
	w.awaitOffset(1, 2)
	w.expect(want)
	if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE msg_lane = 1`); n != 2 {
		t.Errorf("%d campaigns have their newest message on partition 1, want 2", n)
	}
	stop()

	// A fresh database and one that was brought up have the same tables.
	if up, fresh := w.columns(), newDeployment(t, 1, nil).columns(); up != fresh {
		t.Errorf("the columns are\n%s\nand of a fresh deployment\n%s", up, fresh)
	}
	if epoch := w.db.Int(`SELECT epoch FROM dinnerbell.lane WHERE lane = 0`); epoch != 9 {
		t.Errorf("epoch %d, want 9: one for the setup, one for the takeover", epoch)
	}
}

// Each former layout becomes the present one: the same columns and the same states.
func TestSetupBringsEachLayoutUp(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, nil)
	fresh := w.columns()
	for n, layout := range []string{layout1, layout2, layout3} {
		w.db.Exec(`DROP SCHEMA dinnerbell CASCADE`)
		w.db.Exec(layout)
		if did, err := sink.Setup(t.Context(), w.cfg.Sink); err != nil || !strings.Contains(strings.Join(did, "\n"), "brought to layout") {
			t.Fatalf("setup of layout %d: %q, %v", n+1, did, err)
		}
		if up := w.columns(); up != fresh {
			t.Errorf("layout %d: the columns are\n%s\nand of a fresh deployment\n%s", n+1, up, fresh)
		}
	}
}

// ownRow makes a lane's row as layout 1 has it, of an owner with epoch 7.
func (w *deployment) ownRow(lane int32, next, seq int64) {
	w.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.kafka.Brokers...))
	if err != nil {
		w.Fatal(err)
	}
	defer client.Close()
	found, err := topic.ReadCluster(w.Context(), client, w.cfg.Kafka)
	if err != nil {
		w.Fatal(err)
	}
	ids := found.IDs(w.cfg.Kafka)
	w.db.Exec(`INSERT INTO dinnerbell.lane (lane, epoch, seq, next_offset, cluster_id, campaigns_topic_id, notifications_topic_id, progress_topic_id) VALUES ($1, 7, $2, $3, $4, $5, $6, $7)`,
		lane, seq, next, ids.Cluster, ids.Campaigns, ids.Notifications, ids.Progress)
}

// columns describes the daemon's tables.
func (w *deployment) columns() string {
	w.Helper()
	rows, err := w.db.Pool.Query(w.Context(), `SELECT format('%s.%s %s %s %s', table_name, column_name, data_type, is_nullable, column_default)
FROM information_schema.columns WHERE table_schema = 'dinnerbell'
UNION ALL SELECT format('%s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = 'dinnerbell'::regnamespace AND contype = 'c'
ORDER BY 1`)
	if err != nil {
		w.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		w.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// A daemon that meets the layout of a later one stops: waiting does not help.
func TestLaterLayoutHalts(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, nil)
	w.db.Exec(`UPDATE dinnerbell.layout SET version = 99`)
	halted := w.halted()
	if halted == nil || !strings.Contains(halted.What, "layout 99") || !strings.Contains(halted.Hint, "later") {
		t.Errorf("halted with %v", halted)
	}
}

// A migration that fails leaves everything as it was.
func TestFailedMigrationChangesNothing(t *testing.T) {
	t.Parallel()
	db, cfg := sinkOnly(t)
	db.Exec(layout1)
	db.Exec(`CREATE VIEW dinnerbell.mine AS SELECT lane FROM dinnerbell.campaign`)
	db.Exec(`ALTER TABLE dinnerbell.campaign ADD COLUMN contested int4`) // somebody else's
	_, err := sink.Setup(t.Context(), cfg.Sink)
	if err == nil || !strings.Contains(err.Error(), "from layout 1 to layout 4") || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("setup: %v", err)
	}
	if n := db.Int(`SELECT count(*) FROM information_schema.columns WHERE table_schema = 'dinnerbell' AND column_name IN ('version', 'msg_lane')`); n != 1 {
		t.Errorf("%d columns of those names, want the one of table layout", n)
	}
}
