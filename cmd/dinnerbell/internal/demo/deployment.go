package demo

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"dinnerbell/internal/testenv"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Names in the demo's own cluster and database.
const (
	database      = "dinner"
	topicIn       = "campaigns"
	topicOut      = "notifications"
	topicDead     = "campaigns.dead"
	lanes         = 4
	readyLimit    = 2 * time.Minute
	pollEvery     = 20 * time.Millisecond
	subscriptions = "subscribers_restaurants"
)

// deployment is everything that runs for one demo.
type deployment struct {
	opts   Options
	began  time.Time
	people population

	dir      string // removed at the end
	postgres *testenv.Postgres
	broker   *testenv.Broker
	daemon   *testenv.Child
	http     string // host:port of the daemon

	db       *pgx.Conn
	producer *kgo.Client
}

// startServers brings everything up in order, and returns when the daemon is ready.
func (w *deployment) startServers(ctx context.Context) error {
	w.began = time.Now()
	for _, step := range []func(context.Context) error{
		w.makeFolder, w.startPostgres, w.startBroker, w.fillTables, w.writeConfig, w.startDaemon,
	} {
		if err := step(ctx); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("start demo: %w", err)
		}
	}
	return nil
}

// makeFolder makes the one folder of this demo.
func (w *deployment) makeFolder(context.Context) error {
	var err error
	w.dir, err = testenv.TempDir("dinnerbell-demo-")
	return err
}

func (w *deployment) startPostgres(ctx context.Context) error {
	bin, err := testenv.FindPostgres(ctx, "")
	if err != nil {
		return fmt.Errorf("find Postgres: %w", err)
	}
	w.sayf("starting Postgres from %s in %s", bin, w.dir)
	w.postgres, err = testenv.StartPostgres(ctx, testenv.PostgresOptions{
		Dir: filepath.Join(w.dir, "postgres"), BinDir: bin,
		Password: rand.Text(), // others use the machine, too
	})
	if err != nil {
		return fmt.Errorf("start Postgres: %w", err)
	}
	admin, err := connectPostgres(ctx, w.postgres.URL(""))
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close(ctx) }()
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+database); err != nil {
		return fmt.Errorf("create database: %w", err)
	}
	w.db, err = connectPostgres(ctx, w.sourceURL())
	return err
}

// sourceURL returns the address of the demo's database.
func (w *deployment) sourceURL() string { return w.postgres.URL(database) }

func connectPostgres(ctx context.Context, url string) (*pgx.Conn, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("connect to the demo's Postgres: %w", err)
	}
	return conn, nil
}

func (w *deployment) startBroker(ctx context.Context) error {
	w.sayf("starting a Kafka broker")
	var err error
	w.broker, err = testenv.StartBroker(ctx, testenv.BrokerOptions{
		Dir: filepath.Join(w.dir, "broker"), Command: []string{w.opts.Binary, "broker"},
	})
	if err != nil {
		return fmt.Errorf("start broker: %w", err)
	}
	w.producer, err = kgo.NewClient(kgo.SeedBrokers(w.broker.Addr()), kgo.DefaultProduceTopic(topicIn), kgo.ProducerLinger(0))
	if err != nil {
		return fmt.Errorf("make producer: %w", err)
	}
	return w.makeTopic(ctx)
}

// fillTables creates the tables of the contract and the population's subscriptions.
func (w *deployment) fillTables(ctx context.Context) error {
	w.sayf("inserting %d subscriptions over %d restaurants", w.opts.Subscriptions, w.opts.Restaurants)
	if _, err := w.db.Exec(ctx, testenv.ContractTables); err != nil {
		return fmt.Errorf("create tables: %w", err)
	}
	w.people = newPopulation(w.opts.Subscriptions, w.opts.Restaurants)
	rows := make([][]any, 0, w.opts.Subscriptions)
	for k := range w.people.restaurants {
		w.people.eachSubscriber(k, func(client, restaurant string) { rows = append(rows, []any{client, restaurant}) })
	}
	_, err := w.db.CopyFrom(ctx, pgx.Identifier{"public", subscriptions}, []string{"client_id", "restaurant_id"}, pgx.CopyFromRows(rows))
	if err != nil {
		return fmt.Errorf("insert subscriptions: %w", err)
	}
	if _, err := w.db.Exec(ctx, joinIndex); err != nil {
		return fmt.Errorf("index subscriptions: %w", err)
	}
	return nil
}

// writeConfig writes the configuration that a user would write, and sets up.
func (w *deployment) writeConfig(context.Context) error {
	port, err := testenv.FreePort()
	if err != nil {
		return err
	}
	w.http = testenv.Loopback(port)
	// JSON is YAML; its quoting is right for any path.
	text, err := json.MarshalIndent(map[string]any{
		"source": map[string]any{"url": w.sourceURL()},
		"kafka":  map[string]any{"brokers": []string{w.broker.Addr()}},
		"state":  map[string]any{"dir": filepath.Join(w.dir, "state")},
		"http":   map[string]any{"listen": w.http},
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.WriteFile(w.configFile(), text, 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	w.sayf("dinnerbell setup")
	return runCommand(w.opts.Binary, testenv.ChildEnvironment(w.opts.Env), w.opts.Stderr, "-c", w.configFile(), "setup")
}

func (w *deployment) configFile() string { return filepath.Join(w.dir, "dinnerbell.yaml") }

func (w *deployment) startDaemon(ctx context.Context) error {
	w.sayf("dinnerbell run")
	began := time.Now()
	var err error
	w.daemon, err = startDaemon(w.opts.Binary, w.configFile(), filepath.Join(w.dir, "daemon.log"), testenv.ChildEnvironment(w.opts.Env))
	if err != nil {
		return err
	}
	err = w.daemon.AwaitReady(ctx, readyLimit, pollEvery, func(ctx context.Context) error {
		_, err := w.getStatus(ctx, "/readyz")
		return err
	})
	if err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	w.sayf("ready after %d ms", time.Since(began).Milliseconds())
	return nil
}

func (w *deployment) getStatus(ctx context.Context, path string) ([]byte, error) {
	return testenv.Get(ctx, "http://"+w.http+path)
}

// stopServers stops all processes, in the reverse order of their start, and removes
// the folder. The broker and Postgres outlive the daemon, so that it can drain.
func (w *deployment) stopServers() error {
	w.sayf("stopping")
	var errs []error
	if w.daemon != nil {
		errs = append(errs, w.daemon.Stop(stopLimit))
	}
	if w.producer != nil {
		w.producer.Close()
	}
	if w.db != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = w.db.Close(ctx) // the server stops next
		cancel()
	}
	if w.broker != nil {
		errs = append(errs, w.broker.Stop())
	}
	if w.postgres != nil {
		errs = append(errs, w.postgres.Stop())
	}
	if w.dir != "" {
		errs = append(errs, os.RemoveAll(w.dir))
	}
	return errors.Join(errs...)
}

// printHints prints how to look at the demo with other tools, with the real ports.
func (w *deployment) printHints() {
	example := newCampaign("my-campaign", w.people.restaurants[0], 0, time.Now())
	_, _ = fmt.Fprintf(w.opts.Stderr, `
Look at it from another terminal:

  kcat -C -b %[1]s -t %[2]s -X isolation.level=read_committed -o end
  psql '%[3]s' -c 'SELECT adv_campaign_content, count(*) FROM subscribers_feedback GROUP BY 1 ORDER BY max(id) DESC LIMIT 10'
  %[4]s -c %[5]s status
  curl -s http://%[6]s/api/status

or send a campaign of your own:

  echo '%[7]s' |
    kcat -P -b %[1]s -t %[8]s

Ctrl-C ends it and removes everything.

`, w.broker.Addr(), topicOut, w.sourceURL(), w.opts.Binary, w.configFile(), w.http, example.JSON(), topicIn)
}
