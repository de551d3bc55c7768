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
	http     string     // host:port of the daemon
	page     *startPage // at this address, until the daemon is started

	db       *pgx.Conn
	producer *kgo.Client
}

// startServers brings everything up in order, and returns when the daemon is ready.
func (d *deployment) startServers(ctx context.Context) error {
	d.began = time.Now()
	for _, step := range []func(context.Context) error{
		d.openStartPage, d.makeFolder, d.startPostgres, d.startBroker, d.fillTables, d.writeConfig, d.startDaemon,
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
func (d *deployment) makeFolder(context.Context) error {
	var err error
	d.dir, err = testenv.TempDir("dinnerbell-demo-")
	return err
}

func (d *deployment) startPostgres(ctx context.Context) error {
	bin, err := testenv.FindPostgres(ctx, "")
	if err != nil {
		return fmt.Errorf("find Postgres: %w", err)
	}
	d.sayf("starting Postgres, in %s", d.dir)
	d.postgres, err = testenv.StartPostgres(ctx, testenv.PostgresOptions{
		Dir: filepath.Join(d.dir, "postgres"), BinDir: bin,
		Password: rand.Text(), // others use the machine, too
	})
	if err != nil {
		return fmt.Errorf("start Postgres: %w", err)
	}
	admin, err := connectPostgres(ctx, d.postgres.URL(""))
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close(ctx) }()
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+database); err != nil {
		return fmt.Errorf("create database: %w", err)
	}
	d.db, err = connectPostgres(ctx, d.sourceURL())
	return err
}

// sourceURL returns the address of the demo's database.
func (d *deployment) sourceURL() string { return d.postgres.URL(database) }

func connectPostgres(ctx context.Context, url string) (*pgx.Conn, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("connect to the demo's Postgres: %w", err)
	}
	return conn, nil
}

func (d *deployment) startBroker(ctx context.Context) error {
	d.sayf("starting a Kafka broker")
	var err error
	d.broker, err = testenv.StartBroker(ctx, testenv.BrokerOptions{
		Dir: filepath.Join(d.dir, "broker"), Command: []string{d.opts.Binary, "broker"},
	})
	if err != nil {
		return fmt.Errorf("start broker: %w", err)
	}
	d.producer, err = kgo.NewClient(kgo.SeedBrokers(d.broker.Addr()), kgo.DefaultProduceTopic(topicIn), kgo.ProducerLinger(0))
	if err != nil {
		return fmt.Errorf("make producer: %w", err)
	}
	return d.makeTopic(ctx)
}

// fillTables creates the tables of the contract and the population's subscriptions.
func (d *deployment) fillTables(ctx context.Context) error {
	d.sayf("inserting %d subscriptions over %d restaurants", d.opts.Subscriptions, d.opts.Restaurants)
	if _, err := d.db.Exec(ctx, testenv.ContractTables); err != nil {
		return fmt.Errorf("create tables: %w", err)
	}
	d.people = newPopulation(d.opts.Subscriptions, d.opts.Restaurants)
	rows := make([][]any, 0, d.opts.Subscriptions)
	for k := range d.people.restaurants {
		d.people.eachSubscriber(k, func(client, restaurant string) { rows = append(rows, []any{client, restaurant}) })
	}
	_, err := d.db.CopyFrom(ctx, pgx.Identifier{"public", subscriptions}, []string{"client_id", "restaurant_id"}, pgx.CopyFromRows(rows))
	if err != nil {
		return fmt.Errorf("insert subscriptions: %w", err)
	}
	if _, err := d.db.Exec(ctx, joinIndex); err != nil {
		return fmt.Errorf("index subscriptions: %w", err)
	}
	return nil
}

// writeConfig writes the configuration that a user would write, and sets up.
func (d *deployment) writeConfig(context.Context) error {
	// JSON is YAML; its quoting is right for any path.
	text, err := json.MarshalIndent(map[string]any{
		"source": map[string]any{"url": d.sourceURL()},
		"kafka":  map[string]any{"brokers": []string{d.broker.Addr()}},
		"state":  map[string]any{"dir": filepath.Join(d.dir, "state")},
		"http":   map[string]any{"listen": d.http},
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.WriteFile(d.configFile(), text, 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	d.sayf("dinnerbell setup")
	return runCommand(d.opts.Binary, testenv.ChildEnvironment(d.opts.Env), d.opts.Stderr, "-c", d.configFile(), "setup")
}

func (d *deployment) configFile() string { return filepath.Join(d.dir, "dinnerbell.yaml") }

func (d *deployment) startDaemon(ctx context.Context) error {
	if err := d.closeStartPage(); err != nil {
		return err
	}
	d.sayf("dinnerbell run")
	began := time.Now()
	if err := d.launchDaemon(ctx); err != nil {
		return err
	}
	d.sayf("ready after %d ms", time.Since(began).Milliseconds())
	return nil
}

// launchDaemon starts the daemon and returns when it is ready.
func (d *deployment) launchDaemon(ctx context.Context) (err error) {
	d.daemon, err = startDaemon(d.opts.Binary, d.configFile(), filepath.Join(d.dir, "daemon.log"), testenv.ChildEnvironment(d.opts.Env))
	if err != nil {
		return err
	}
	err = d.daemon.AwaitReady(ctx, readyLimit, pollEvery, func(ctx context.Context) error {
		_, err := d.getStatus(ctx, "/readyz")
		return err
	})
	if err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	return nil
}

func (d *deployment) getStatus(ctx context.Context, path string) ([]byte, error) {
	return testenv.Get(ctx, "http://"+d.http+path)
}

// stopServers stops all processes, in the reverse order of their start, and removes
// the folder. The broker and Postgres outlive the daemon, so that it can drain.
func (d *deployment) stopServers() error {
	d.sayf("stopping")
	errs := []error{d.closeStartPage()}
	if d.daemon != nil {
		errs = append(errs, d.daemon.Stop(stopLimit))
	}
	if d.producer != nil {
		d.producer.Close()
	}
	if d.db != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = d.db.Close(ctx) // the server stops next
		cancel()
	}
	if d.broker != nil {
		errs = append(errs, d.broker.Stop())
	}
	if d.postgres != nil {
		errs = append(errs, d.postgres.Stop())
	}
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	return errors.Join(errs...)
}

// printHints prints the address of the live page again, how to look at the demo with other
// tools, with the real ports, and what the columns mean. A line takes 80 columns, but for
// long folders.
func (d *deployment) printHints() error {
	example := newCampaign("my-campaign", d.people.restaurants[0], 0, time.Now())
	file := filepath.Join(d.dir, "campaign.json")
	if err := os.WriteFile(file, append(example.JSON(), '\n'), 0o600); err != nil {
		return fmt.Errorf("write example: %w", err)
	}
	postgres, err := pgx.ParseConfig(d.sourceURL())
	if err != nil {
		return fmt.Errorf("read the demo's address: %w", err)
	}
	_, _ = fmt.Fprintf(d.opts.Stderr, `
Live page:  http://%[1]s/

From another terminal: the notifications, their rows, the status, and a campaign
of your own

  kcat -C -b %[2]s -t %[3]s -o end \
    -X isolation.level=read_committed
  PGPASSWORD=%[4]s psql -h 127.0.0.1 -p %[5]d \
    -U %[6]s %[7]s -c 'TABLE subscribers_feedback LIMIT 10'
  %[8]s \
    -c %[9]s status
  kcat -P -b %[2]s -t %[10]s -l \
    %[11]s

Ctrl-C ends the demo and removes everything.

Each line is a campaign, printed when its last notification has arrived:
  audience  clients who are subscribed to the restaurant; the bar is logarithmic
  notified  records in topic %[3]s, one for each client
  ms        from sending the campaign to its last notification; "late": still on
            its way after 30 s, its row comes again
`, d.http, d.broker.Addr(), topicOut, postgres.Password, postgres.Port, postgres.User, database, d.opts.Binary, d.configFile(), topicIn, file)
	if d.opts.Chaos {
		_, _ = fmt.Fprintf(d.opts.Stderr, `
Every %d seconds the daemon is killed (kill -9) in the middle of its work and
started again; then both sinks are compared with a join in SQL.
`, int(killEvery.Seconds()))
	}
	return nil
}
