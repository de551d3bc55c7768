package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/workload"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
)

// docWorld is a reader of documents with servers of his own: the documents use the
// default names of topics, slot and group.
type docWorld struct {
	*reader
	db    *envtest.DB
	kafka *envtest.Cluster
}

// newDocWorld starts the servers. They hold nothing.
func newDocWorld(t *testing.T) *docWorld {
	t.Helper()
	if os.Getenv("TEST_DOCS") == "" {
		t.Skip("make test-docs runs the commands of the documents")
	}
	server := envtest.StartPostgres(t, filepath.Join(envtest.Dir(t), "postgres"), nil)
	broker := envtest.StartBroker(t, filepath.Join(envtest.Dir(t), "broker"))
	t.Cleanup(func() {
		if err := broker.Stop(); err != nil {
			t.Error(err)
		}
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	address := strings.TrimSuffix(strings.SplitN(server.URL("x"), "@", 2)[1], "/x")
	address, _, _ = strings.Cut(address, "/")
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	second, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(envtest.Dir(t), "lib")
	w := &docWorld{kafka: envtest.KafkaAt(t, broker.Addr())}
	w.reader = newReader(t, "127.0.0.1:5432", address, "db:5432", address, "127.0.0.1:9092", broker.Addr(), "kafka:9092", broker.Addr(),
		"127.0.0.1:8420", testenv.Loopback(port), "127.0.0.1:8421", testenv.Loopback(second), "/var/lib/dinnerbell", folder)
	pool, err := pgxpool.New(t.Context(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	w.db = envtest.On(t, server.URL("postgres"), pool)
	return w
}

// useDatabase creates the database de and makes it the world's.
func (w *docWorld) useDatabase() {
	w.Helper()
	w.db.Exec("CREATE DATABASE de")
	url := strings.Replace(w.db.URL, "/postgres?", "/de?", 1)
	pool, err := pgxpool.New(w.Context(), url)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(pool.Close)
	w.db = envtest.On(w, url, pool)
	w.env = append(w.env, "DATABASE="+url)
}

// deploy has a daemon run with two lanes over three restaurants of 50 clients.
func (w *docWorld) deploy() {
	w.Helper()
	w.useDatabase()
	w.db.Exec(testenv.ContractTables)
	w.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client-' || n, 'restaurant-' || n % 3 FROM generate_series(1, 150) n`)
	w.kafka.TopicNamed("campaigns", 2, nil)
	config := "source: {url: '" + w.db.URL + "'}\nkafka: {brokers: ['kafka:9092']}\nstate: {dir: /var/lib/dinnerbell}\nhttp: {listen: '127.0.0.1:8420'}\n"
	w.writeFile("dinnerbell.yaml", config)
	w.runBlock(block{heading: "deploy", lang: "sh", text: "dinnerbell setup\ndinnerbell run\n"})
}

// writeFile writes a file with the addresses of the servers into the reader's folder.
func (w *docWorld) writeFile(name, text string) {
	w.Helper()
	if err := os.WriteFile(w.path(name), []byte(w.replace.Replace(text)), 0o600); err != nil {
		w.Fatal(err)
	}
}

// send sends campaigns of these ids to a partition.
func (w *docWorld) send(partition int32, campaigns ...workload.Campaign) {
	w.Helper()
	client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for _, c := range campaigns {
		if err := client.ProduceSync(w.Context(), &kgo.Record{Topic: "campaigns", Partition: partition, Value: c.JSON()}).FirstErr(); err != nil {
			w.Fatal(err)
		}
	}
}

// await waits until a query for one number gives this one.
func (w *docWorld) await(want int64, sql string, args ...any) {
	w.Helper()
	envtest.Until(w.T, patience, func() error {
		if n := w.db.Int(sql, args...); n != want {
			return fmt.Errorf("%d instead of %d: %s\n%s", n, want, sql, w.daemonLog())
		}
		return nil
	})
}

const rowsOfCampaign = `SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = $1`

// scheduled returns a campaign that starts in an hour.
func scheduled(id, restaurant string) workload.Campaign {
	c := newCampaign(id, restaurant)
	c.Start = time.Now().Add(time.Hour).Unix()
	c.End = c.Start + 3600
	return c
}

// The commands of docs/operations.md work in the situations that they are for.
func TestOperationsAreExecuted(t *testing.T) {
	t.Parallel()
	w := newDocWorld(t)
	w.deploy()
	w.read("docs/operations.md", map[string]situation{
		"A sink was rolled back":                     {w.rollBackPostgres},
		"A campaign went to the wrong audience":      {w.startAgain},
		"Clients were missed":                        {w.missClients},
		"Stop a campaign now":                        {w.schedule},
		"Saving the local state and putting it back": {w.saveState},
		"The machine moves":                          {w.nameCheckpoint},
		"Messages are refused":                       {w.refuseMessages},
		"A client did not get a campaign":            {w.leaveOutClient},
	})
	w.stopDaemon(syscall.SIGTERM)
}

// rollBackPostgres sets the tables of both lanes back and leaves the daemon halted.
func (w *docWorld) rollBackPostgres() map[string][]string {
	tables := []string{"public.subscribers_feedback", "dinnerbell.lane", "dinnerbell.campaign", "dinnerbell.outbox"}
	w.stopDaemon(syscall.SIGTERM)
	for _, table := range tables {
		w.db.Exec("CREATE TABLE " + table + "_backup AS TABLE " + table)
	}
	w.startDaemon(w.command)
	w.send(0, newCampaign("lost-0", "restaurant-0"))
	w.send(1, newCampaign("lost-1", "restaurant-1"))
	w.await(100, `SELECT count(*) FROM subscribers_feedback`)
	w.awaitShipped(100)
	w.stopDaemon(syscall.SIGTERM)
	for _, table := range tables {
		w.db.Exec("TRUNCATE " + table)
		w.db.Exec("INSERT INTO " + table + " TABLE " + table + "_backup")
		w.db.Exec("DROP TABLE " + table + "_backup")
	}
	return map[string][]string{"N": {"0", "1"}}
}

// awaitShipped waits until the notifications topic holds n records.
func (w *docWorld) awaitShipped(n int) {
	w.Helper()
	envtest.Until(w.T, patience, func() error {
		if records := w.kafka.ReadAll("notifications"); len(records) != n {
			return fmt.Errorf("%d records instead of %d", len(records), n)
		}
		return nil
	})
}

func (w *docWorld) startAgain() map[string][]string {
	w.startDaemon(w.command)
	return nil
}

// missClients sends a campaign, and takes away one of its rows.
func (w *docWorld) missClients() map[string][]string {
	w.send(0, newCampaign("missed", "restaurant-0"))
	w.await(50, rowsOfCampaign, "missed")
	return map[string][]string{"RESTAURANT": {"restaurant-0"}}
}

func (w *docWorld) schedule() map[string][]string {
	w.send(0, scheduled("held", "restaurant-0"), scheduled("large", "restaurant-0"), scheduled("wrong", "restaurant-0"), scheduled("wrong", "restaurant-1"))
	w.await(4, `SELECT count(*) FROM dinnerbell.campaign WHERE state = 'pending'`)
	return map[string][]string{"CAMPAIGN": {"held", "held", "wrong", "wrong", "large"}, "ID": {"restaurant-1"}}
}

func (w *docWorld) saveState() map[string][]string {
	w.runBlock(block{heading: "save", lang: "sh", text: "dinnerbell checkpoint create"})
	return w.nameCheckpoint()
}

// nameCheckpoint puts the newest checkpoint's id in the place of the example's.
func (w *docWorld) nameCheckpoint() map[string][]string {
	w.Helper()
	list := w.runBlock(block{heading: "list", lang: "sh", text: "dinnerbell checkpoint list --json"})
	var ids []struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal([]byte(list), &ids); err != nil || len(ids) == 0 {
		w.Fatalf("%v: %s", err, list)
	}
	return map[string][]string{"20260131T080000.000Z": {ids[len(ids)-1].ID}}
}

// refuseMessages has three campaigns refused whose notifications are too large, and then
// raises the topic's limit.
func (w *docWorld) refuseMessages() map[string][]string {
	w.kafka.Configure("notifications", "max.message.bytes", "3000")
	w.stopDaemon(syscall.SIGTERM)
	w.startDaemon(w.command)
	for n := range 3 {
		c := newCampaign("soup", "restaurant-"+strconv.Itoa(n))
		c.Content = strings.Repeat("soup ", 800)
		w.send(0, c)
	}
	names := []string{}
	envtest.Until(w.T, patience, func() error {
		names = names[:0]
		list := w.runBlock(block{heading: "list", lang: "sh", text: "dinnerbell dead-letters list --json"})
		for line := range strings.Lines(list) {
			var letter struct {
				Partition int64 `json:"partition"`
				Offset    int64 `json:"offset"`
			}
			if err := json.Unmarshal([]byte(line), &letter); err != nil {
				return fmt.Errorf("%w: %s", err, line)
			}
			names = append(names, fmt.Sprintf("%d:%d", letter.Partition, letter.Offset))
		}
		if len(names) != 3 {
			return fmt.Errorf("dead letters: %s", list)
		}
		return nil
	})
	w.kafka.Configure("notifications", "max.message.bytes", "1048588")
	w.stopDaemon(syscall.SIGTERM)
	w.startDaemon(w.command)
	return map[string][]string{"0:17": {names[0]}, "0:23": {names[1]}}
}

// leaveOutClient has the campaign of soup reach its clients, of whom the recipe asks.
func (w *docWorld) leaveOutClient() map[string][]string {
	w.await(150, rowsOfCampaign, "soup")
	w.awaitAnswer("explain", "soup", "client-3")
	return map[string][]string{"CAMPAIGN": {"soup"}, "CLIENT": {"client-3"}, "RESTAURANT": {"restaurant-0"}}
}

// awaitAnswer waits until a command of dinnerbell ends with 0.
func (w *docWorld) awaitAnswer(args ...string) {
	w.Helper()
	envtest.Until(w.T, patience, func() error {
		cmd := exec.Command(w.path("bin/dinnerbell"), args...)
		cmd.Dir, cmd.Env = w.dir, w.env
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// The commands and statements of docs/campaigns.md work.
func TestCampaignCommandsAreExecuted(t *testing.T) {
	t.Parallel()
	w := newDocWorld(t)
	w.deploy()
	w.send(0, newCampaign("lunch", "restaurant-0"), scheduled("dinner", "restaurant-0"))
	w.await(50, rowsOfCampaign, "lunch")
	w.read("docs/campaigns.md", nil)
	w.stopDaemon(syscall.SIGTERM)
}
