package stream

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/workload"
	"dinnerbell/state"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
)

// patience bounds how long a test waits for what must come.
const patience = envtest.Patience

// deployment is a deployment of the stream on real servers, with subscriptions that
// are loaded straight into the state store: what package cdc would bring.
type deployment struct {
	testing.TB
	db      *envtest.DB
	kafka   *envtest.Cluster
	cfg     Config
	store   *state.Store
	barrier Barrier
	subs    map[string][]string // restaurant → clients
	rowsSQL string              // reads the feedback table, in the order of COPY

	stateOptions  state.Options // of the stores
	uncounted     bool          // the campaign table did not count from the first notification on
	unmetPatience time.Duration // of start's services; 0: the usual
	inputPatience time.Duration // the same
	recentLimit   int           // the same
	startLimit    int           // the same
	clock         *testClock    // the services' clock; nil: this machine's
	clockWatch    time.Duration // as unmetPatience
	trimEvery     time.Duration // the same
}

// noBarrier is for tests whose subscriptions do not change.
type noBarrier struct{}

func (noBarrier) Barrier(context.Context) error { return nil }

func newDeployment(t testing.TB, lanes int32, subs map[string][]string) *deployment {
	t.Helper()
	w := &deployment{TB: t, db: envtest.Database(t), kafka: envtest.Kafka(t), barrier: noBarrier{}, subs: subs,
		rowsSQL: `SELECT ` + sink.ContractTable().RowSQL("f") + ` FROM subscribers_feedback f WHERE f.feedback IS NULL`}
	w.cfg = Config{Config: takeover.Config{
		Sink: sink.Config{URL: func() (string, error) { return w.db.URL, nil }, Schema: "public", Table: "subscribers_feedback", DaemonSchema: "dinnerbell"},
		Kafka: topic.Config{
			ClientOptions: func() ([]kgo.Opt, error) { return []kgo.Opt{kgo.SeedBrokers(w.kafka.Brokers...)}, nil },
			Campaigns:     w.kafka.Topic("campaigns", lanes, nil),
			Notifications: w.kafka.Topic("notifications", 3, nil),
			DeadLetters:   w.kafka.Topic("dead", 1, map[string]string{"max.message.bytes": fmt.Sprint(topic.DefaultMaxMessage + 64<<10)}),
			Progress:      w.kafka.Topic("progress", lanes, map[string]string{"cleanup.policy": "compact"}),
			Group:         envtest.Name("group"),
			InstanceID:    "test",
		},
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}}
	if _, err := sink.Setup(t.Context(), w.cfg.Sink); err != nil {
		t.Fatal(err)
	}
	w.stateOptions.Logger = w.cfg.Logger
	w.store = w.openStore()
	return w
}

// openStore gives a new store with the world's subscriptions.
func (w *deployment) openStore() *state.Store {
	w.Helper()
	store, err := state.Open(w.TempDir(), w.stateOptions)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		if err := store.Close(); err != nil {
			w.Errorf("close store: %v", err)
		}
	})
	loader, err := store.NewGeneration()
	if err != nil {
		w.Fatal(err)
	}
	row := 0
	for _, restaurant := range slices.Sorted(maps.Keys(w.subs)) {
		for _, client := range w.subs[restaurant] {
			row++
			if err := loader.Add(id.PackRow(fmt.Sprint(row)), packID(w, restaurant), packID(w, client)); err != nil {
				w.Fatal(err)
			}
		}
	}
	if err := loader.Finish(state.Source{SystemID: "test"}, 1); err != nil {
		w.Fatal(err)
	}
	return store
}

// start runs a service; stop drains it and fails the test if it did not end well.
func (w *deployment) start() (svc *Service, stop func()) {
	w.Helper()
	svc = New(w.cfg, w.store, w.barrier)
	svc.operatorLook = 50 * time.Millisecond
	if w.unmetPatience > 0 {
		svc.unmetPatience = w.unmetPatience
	}
	if w.startLimit > 0 {
		svc.startLimit = w.startLimit
	}
	if w.clock != nil {
		svc.now = w.clock.now
	}
	if w.clockWatch > 0 {
		svc.clockWatch = w.clockWatch
	}
	if w.trimEvery > 0 {
		svc.trimEvery = w.trimEvery
	}
	if w.inputPatience > 0 {
		svc.inputPatience = w.inputPatience
	}
	if w.recentLimit > 0 {
		svc.recentLimit = w.recentLimit
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			w.Errorf("service ended: %v", err)
		}
	}
	w.Cleanup(stop)
	return svc, stop
}

// campaign makes a campaign that is valid now.
func (w *deployment) campaign(id, restaurant string) campaign.Campaign {
	now := time.Now().Unix()
	return campaign.Campaign{RestaurantID: restaurant, ID: id, Content: "content of " + id, Owner: "owner", OwnerContact: "o@example.com", Start: now - 10, End: now + 3600, Created: now - 20}
}

// encodeCampaign makes a message of the campaigns topic.
func encodeCampaign(c campaign.Campaign) []byte {
	message := workload.Campaign{
		Restaurant: c.RestaurantID, ID: c.ID, Content: c.Content, Owner: c.Owner, Contact: c.OwnerContact,
		Start: c.Start, End: c.End, Created: c.Created,
	}
	return message.JSON()
}

// produce writes messages to one partition of the campaigns topic.
func (w *deployment) produce(partition int32, values ...[]byte) {
	w.Helper()
	client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(topic.DefaultMaxMessage))
	for _, v := range values {
		if err := client.ProduceSync(w.Context(), &kgo.Record{Topic: w.cfg.Kafka.Campaigns, Partition: partition, Value: v}).FirstErr(); err != nil {
			w.Fatal(err)
		}
	}
}

// note is one notification as a sink shows it; equal in both sinks.
type note struct {
	campaign.Campaign
	client  string
	trigger int64
}

// rows reads the feedback table.
func (w *deployment) rows() []note {
	w.Helper()
	rows, err := w.db.Pool.Query(w.Context(), w.rowsSQL)
	if err != nil {
		w.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (n note, err error) {
		err = r.Scan(&n.RestaurantID, &n.ID, &n.Content, &n.Owner, &n.OwnerContact, &n.Start, &n.End, &n.Created, &n.trigger, &n.client)
		return n, err
	})
	if err != nil {
		w.Fatal(err)
	}
	return out
}

// records reads the notifications topic as a read_committed consumer.
func (w *deployment) records() []note {
	w.Helper()
	var out []note
	for _, r := range w.kafka.ReadAll(w.cfg.Kafka.Notifications) {
		var v workload.Notification
		if err := json.Unmarshal(r.Value, &v); err != nil {
			w.Fatalf("record %s: %v", r.Value, err)
		}
		if key := escapeKey.Replace(v.Campaign) + ":" + escapeKey.Replace(v.Client); string(r.Key) != key {
			w.Errorf("record of %s has key %s", key, r.Key)
		}
		out = append(out, note{campaign.Campaign{
			RestaurantID: v.Restaurant, ID: v.Campaign, Content: v.Content, Owner: v.Owner, OwnerContact: v.Contact,
			Start: v.Start, End: v.End, Created: v.Created,
		}, v.Client, v.Trigger})
	}
	return out
}

// expect waits until both sinks hold exactly the pairs of want (campaign →
// clients), each once and with equal fields.
func (w *deployment) expect(want map[string][]string) {
	w.Helper()
	envtest.Until(w, patience, func() error { return w.compare(want) })
	w.checkCounts()
}

// checkCounts checks that the campaign table counts exactly the rows that the feedback
// table has, but for rows of another job.
func (w *deployment) checkCounts() {
	w.Helper()
	if w.uncounted {
		return
	}
	differ, err := sink.QueryTexts(w.Context(), w.db.Pool, `SELECT format('campaign %s of %s: %s rows, %s counted', coalesce(f.id, c.adv_campaign_id), coalesce(f.restaurant, c.restaurant_id), coalesce(f.n, 0), c.notified)
FROM (SELECT adv_campaign_id AS id, restaurant_id AS restaurant, count(*) AS n FROM (`+w.rowsSQL+`) AS f(restaurant_id, adv_campaign_id) GROUP BY 1, 2) f
FULL JOIN dinnerbell.campaign c ON c.adv_campaign_id = f.id AND c.restaurant_id = f.restaurant WHERE coalesce(f.n, 0) <> coalesce(c.notified, 0)`)
	if err != nil {
		w.Fatal(err)
	}
	for _, text := range differ {
		w.Error(text)
	}
}

// compare compares both sinks with the pairs of want. It reads the topic once the table
// is as wanted.
func (w *deployment) compare(want map[string][]string) error {
	w.Helper()
	rows := w.rows()
	if err := matches(rows, want); err != nil {
		return fmt.Errorf("rows: %w", err)
	}
	records := w.records()
	if err := matches(records, want); err != nil {
		return fmt.Errorf("records: %w", err)
	}
	return sameNotes(rows, records)
}

// matches compares notifications with the clients that each campaign should have: each
// as often as it is listed.
func matches(notes []note, want map[string][]string) error {
	got := map[string][]string{}
	for _, n := range notes {
		got[n.ID] = append(got[n.ID], n.client)
	}
	for _, id := range slices.Sorted(maps.Keys(want)) {
		if err := sameSet(got[id], want[id]); err != nil {
			return fmt.Errorf("campaign %s: %w", id, err)
		}
		delete(got, id)
	}
	if len(got) > 0 {
		return fmt.Errorf("campaigns that were not expected: %v", slices.Collect(maps.Keys(got)))
	}
	return nil
}

// sameSet compares clients in any order.
func sameSet(got, want []string) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d clients, want %d", len(got), len(want))
	}
	if !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		return fmt.Errorf("%d clients as wanted, but others, or some of them twice", len(got))
	}
	return nil
}

func sameNotes(a, b []note) error {
	order := func(x, y note) int { return strings.Compare(x.ID+"\x00"+x.client, y.ID+"\x00"+y.client) }
	slices.SortFunc(a, order)
	slices.SortFunc(b, order)
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Errorf("row %+v differs from record %+v", a[i], b[i])
		}
	}
	if len(a) != len(b) {
		return fmt.Errorf("%d rows, %d records", len(a), len(b))
	}
	return nil
}

// checkLanes checks the invariants that can be seen from outside: the outbox
// is contiguous above K, and K ≤ P ≤ K + window.
func (w *deployment) checkLanes(svc *Service) {
	w.Helper()
	for _, l := range svc.Status().Lanes {
		if l.Shipped > l.Decided || l.Decided > l.Shipped+int64(svc.cfg.Window) {
			w.Errorf("lane %d: K %d, P %d", l.Partition, l.Shipped, l.Decided)
		}
	}
}

func clients(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s%04x-e89b-12d3-a456-426614174000", prefix, i)
	}
	return out
}

var escapeKey = strings.NewReplacer("%", "%25", ":", "%3A")
