package envtest_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"

	"dinnerbell/internal/testenv/envtest"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestMain(m *testing.M) { envtest.Main(m) }

func TestDatabaseIsFreshAndLogical(t *testing.T) {
	t.Parallel()
	for range 2 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			db := envtest.Database(t)
			db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ($1, $2)`, "c", "r")
			if n := db.Int(`SELECT count(*) FROM subscribers_restaurants`); n != 1 {
				t.Errorf("rows = %d, want 1: the database is shared", n)
			}
			if n := db.Int(`SELECT count(*) FROM pg_settings WHERE name = 'wal_level' AND setting = 'logical'`); n != 1 {
				t.Error("wal_level is not logical")
			}
			// The clean-up must cope with a slot that is left behind.
			db.Exec(`SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, "left_in_"+db.Name)
		})
	}
}

// TestPostgresKill: a crash keeps committed data, loses uncommitted data,
// leaves no process and frees the port for the same server.
func TestPostgresKill(t *testing.T) {
	t.Parallel()
	server := envtest.StartPostgres(t, envtest.Dir(t), map[string]string{"max_connections": "20"})
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	exec := func(sql string) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), server.URL(""))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(t.Context()) }()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE TABLE kept (i int)`)
	busy, err := pgx.Connect(t.Context(), server.URL(""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Close(context.Background()) }()
	if _, err := busy.Exec(t.Context(), `BEGIN; INSERT INTO kept VALUES (-1)`); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		exec(fmt.Sprintf(`INSERT INTO kept VALUES (%d)`, i))
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", server.Port())); err == nil {
			_ = conn.Close()
			t.Fatal("the port still answers after Kill")
		}
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	exec(`SELECT 1/(count(*) FILTER (WHERE i >= 0) = 3 AND count(*) = 3)::int FROM kept`)
}

// TestBrokerRestart: a stopped broker restarts at the same address with its
// topics, records and committed transactions.
func TestBrokerRestart(t *testing.T) {
	t.Parallel()
	broker := envtest.StartBroker(t, envtest.Dir(t))
	t.Cleanup(func() {
		if err := broker.Stop(); err != nil {
			t.Error(err)
		}
	})
	cluster := envtest.KafkaAt(t, broker.Addr())
	topic := cluster.Topic("restart", 2, nil)
	client := cluster.Client()
	for i := range 10 {
		record := &kgo.Record{Topic: topic, Value: fmt.Append(nil, i)}
		if err := client.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if i == 4 {
			if err := broker.Stop(); err != nil {
				t.Fatal(err)
			}
			if err := broker.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := cluster.ReadAll(topic); len(got) != 10 {
		t.Errorf("read %d records, want 10", len(got))
	}
}

// TestKafkaKill: a killed broker restarts at the same address with all
// acknowledged records.
func TestKafkaKill(t *testing.T) {
	t.Parallel()
	if !envtest.RealKafka() {
		t.Skip("needs Java and Maven: run by make test-kafka")
	}
	kafka := envtest.StartKafka(t, t.TempDir())
	t.Cleanup(func() {
		if err := kafka.Stop(); err != nil {
			t.Error(err)
		}
	})
	cluster := envtest.KafkaAt(t, kafka.Addr())
	topic := cluster.Topic("kill", 1, nil)
	client := cluster.Client()
	for i := range 4 {
		if i == 2 {
			if err := errors.Join(kafka.Kill(), kafka.Start(t.Context())); err != nil {
				t.Fatal(err)
			}
		}
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	if got := cluster.ReadAll(topic); len(got) != 4 {
		t.Errorf("read %d records, want 4", len(got))
	}
}

// TestReadAll: ReadAll returns committed records once and in order, and neither
// aborted nor open ones, although both and their markers are at the end of the
// log.
func TestReadAll(t *testing.T) {
	t.Parallel()
	cluster := envtest.Kafka(t)
	topic := cluster.Topic("readall", 1, map[string]string{"cleanup.policy": "compact"})
	write := func(values []string, end func(*kgo.Client) error) {
		t.Helper()
		client := cluster.Client(kgo.TransactionalID(envtest.Name("txn")), kgo.DefaultProduceTopic(topic))
		if err := client.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for _, v := range values {
			if err := client.ProduceSync(t.Context(), kgo.KeyStringRecord(v, v)).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		if err := end(client); err != nil {
			t.Fatal(err)
		}
	}
	finish := func(how kgo.TransactionEndTry) func(*kgo.Client) error {
		return func(c *kgo.Client) error { return c.EndTransaction(t.Context(), how) }
	}
	if got := cluster.ReadAll(topic); len(got) != 0 {
		t.Fatalf("an empty topic gave %d records", len(got))
	}
	write([]string{"x", "y"}, finish(kgo.TryAbort))
	write([]string{"a", "b"}, finish(kgo.TryCommit))
	write([]string{"c"}, finish(kgo.TryCommit))
	write([]string{"z"}, finish(kgo.TryAbort))
	write([]string{"open"}, func(*kgo.Client) error { return nil })
	write([]string{"after the open one"}, finish(kgo.TryCommit))
	var got []string
	for _, r := range cluster.ReadAll(topic) {
		got = append(got, string(r.Value))
	}
	if want := "[a b c]"; fmt.Sprint(got) != want {
		t.Errorf("ReadAll = %v, want %s", got, want)
	}
}

func TestUntilWaits(t *testing.T) {
	t.Parallel()
	calls := 0
	envtest.Until(t, envtest.Patience, func() error {
		if calls++; calls < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if calls != 3 {
		t.Errorf("calls = %d, want 3", calls)
	}
}
