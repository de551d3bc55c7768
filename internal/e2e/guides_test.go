package e2e

import (
	"fmt"
	"syscall"
	"testing"

	"dinnerbell/internal/testenv"

	"github.com/twmb/franz-go/pkg/kgo"
)

// The README's commands work beside two tables and a role that may set everything up.
func TestReadmeIsExecuted(t *testing.T) {
	t.Parallel()
	w := newDocWorld(t)
	w.useDatabase()
	w.db.Exec(testenv.ContractTables)
	w.db.Exec(`CREATE ROLE dinnerbell SUPERUSER LOGIN PASSWORD 'a password'`)
	w.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('223e4567-e89b-12d3-a456-426614174000', '123e4567-e89b-12d3-a456-426614174000')`)
	w.env = append(w.env, "DB_PASSWORD=a%20password", "DINNERBELL_HTTP_LISTEN="+w.replace.Replace("127.0.0.1:8420"))
	w.read("README.md", nil)
	w.await(1, `SELECT count(*) FROM subscribers_feedback`)
	w.stopDaemon(syscall.SIGTERM)
}

// The tutorial leads from two empty servers to a crash that nobody notices, and cleans up.
func TestTutorialIsExecuted(t *testing.T) {
	t.Parallel()
	w := newDocWorld(t)
	w.env = append(w.env, "DINNERBELL_HTTP_LISTEN="+w.replace.Replace("127.0.0.1:8420"))
	w.read("docs/tutorial.md", nil)
	if n := w.db.Int(`SELECT count(*) FROM pg_database WHERE datname = 'de'`); n != 0 || w.daemon != nil {
		t.Errorf("%d databases are left, a daemon runs: %t", n, w.daemon != nil)
	}
}

// Another job has left rows that are there twice, records without rows, and a campaign
// that half of its clients have. After the move everybody has everything once.
func TestMigrationIsExecuted(t *testing.T) {
	t.Parallel()
	w := newDocWorld(t)
	w.useDatabase()
	w.db.Exec(testenv.ContractTables)
	w.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client-' || n, 'pizzeria' FROM generate_series(1, 20) n`)
	w.kafka.TopicNamed("campaigns", 2, nil)
	w.kafka.TopicNamed("notifications", 2, nil)
	campaign := newCampaign("pizza", "pizzeria")
	w.send(0, campaign)
	client := w.kafka.Client()
	for n := 1; n <= 12; n++ { // records of twelve clients, without keys; rows of ten of them, two of them twice
		value := fmt.Sprintf(`{"restaurant_id":"pizzeria","adv_campaign_id":"pizza","adv_campaign_content":"%s","adv_campaign_owner":"owner","adv_campaign_owner_contact":"owner@example.com","adv_campaign_datetime_start":%d,"adv_campaign_datetime_end":%d,"client_id":"client-%d","datetime_created":%d,"trigger_datetime_created":%d}`,
			`say \"cheese\"`, campaign.Start, campaign.End, n, campaign.Created, campaign.Start)
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "notifications", Value: []byte(value)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	w.db.Exec(`INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact, adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created, feedback)
SELECT 'pizzeria', 'pizza', 'x', 'owner', 'owner@example.com', 1, 2, 3, 'client-' || n, 4, CASE WHEN n = 2 AND copy = 2 THEN 'yum' END FROM generate_series(1, 10) n, generate_series(1, 2) copy WHERE copy = 1 OR n < 3`)
	config := "source: {url: 'postgres://postgres@127.0.0.1:5432/de'}\nkafka: {brokers: ['127.0.0.1:9092']}\nhttp: {listen: '127.0.0.1:8420'}\n"
	w.writeFile("dinnerbell.yaml", config)
	w.read("docs/migrating.md", nil)
	w.await(20, `SELECT count(*) FROM subscribers_feedback`)
	if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE client_id = 'client-2' AND feedback = 'yum'`); n != 1 {
		t.Errorf("%d rows with the feedback", n)
	}
	if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE client_id IN ('client-11', 'client-12') AND adv_campaign_content = 'say "cheese"'`); n != 2 {
		t.Errorf("%d rows were made of records", n)
	}
	w.awaitShipped(20)
	w.stopDaemon(syscall.SIGTERM)
}

// Two daemons share the lanes, are restarted one after the other, and one goes for good.
func TestSeveralDaemonsAreExecuted(t *testing.T) {
	t.Parallel()
	w := newDocWorld(t)
	w.useDatabase()
	w.db.Exec(testenv.ContractTables)
	w.kafka.TopicNamed("campaigns", 2, nil)
	w.writeFile("dinnerbell.yaml", "source: {url: 'postgres://postgres@127.0.0.1:5432/de'}\nkafka: {brokers: ['127.0.0.1:9092']}\n")
	w.read("docs/several-daemons.md", nil)
	w.runBlock(block{heading: "the end", lang: "sh", text: "kill -TERM $(cat one.pid)\nwhile kill -0 $(cat one.pid) 2>/dev/null; do sleep 0.1; done"})
}
