package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"dinnerbell/internal/testenv"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

// world is what all rounds share: the two servers and a folder. Rounds never
// share a database or a topic.
type world struct {
	opts     *options
	dir      string
	binary   string // a copy of the daemon: a build meanwhile changes nothing
	postgres *testenv.Postgres
	broker   broker

	mu  sync.Mutex // guards err
	err error      // a server did not come back: no round can go on
}

// broker is Kafka or kfake.
type broker interface {
	Addr() string
	Start(ctx context.Context) error
	Stop() error
	// crash is SIGKILL for Kafka, and SIGTERM for kfake, which tears its
	// transactions otherwise.
	crash() error
}

type realKafka struct{ *testenv.Kafka }

func (k realKafka) crash() error { return k.Kill() }

type fakeKafka struct{ *testenv.Broker }

func (k fakeKafka) crash() error { return k.Stop() }

// startWorld makes a folder and starts the servers. Postgres runs without
// fsync: a killed process loses nothing that it gave to the kernel, and only
// processes are killed here.
func startWorld(ctx context.Context, o *options) (w *world, err error) {
	w = &world{opts: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.stop())
		}
	}()
	if w.dir, err = os.MkdirTemp("", "chaos-"); err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	w.binary = filepath.Join(w.dir, "dinnerbell")
	text, err := os.ReadFile(o.binary)
	if err == nil {
		err = os.WriteFile(w.binary, text, 0o755) //nolint:gosec // it is to be run
	}
	if err != nil {
		return nil, fmt.Errorf("copy the daemon: %w; `make build` makes it", err)
	}
	if err := os.Chmod(w.dir, 0o711); err != nil { //nolint:gosec // as root, Postgres runs under another user
		return nil, fmt.Errorf("open folder: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	bin, err := testenv.FindPostgres(ctx, filepath.Join(cache, "dinnerbell"))
	if err != nil {
		return nil, fmt.Errorf("find Postgres: %w", err)
	}
	w.postgres, err = testenv.StartPostgres(ctx, testenv.PostgresOptions{
		Dir: filepath.Join(w.dir, "postgres"), BinDir: bin,
		Settings: map[string]string{"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"},
	})
	if err != nil {
		return nil, fmt.Errorf("start Postgres: %w", err)
	}
	return w, w.startBroker(ctx)
}

func (w *world) startBroker(ctx context.Context) error {
	dir := filepath.Join(w.dir, "broker")
	if w.opts.broker == "kafka" {
		k, err := testenv.StartKafka(ctx, testenv.KafkaOptions{Script: w.opts.script, Dir: dir})
		if err != nil {
			return fmt.Errorf("start Kafka: %w", err)
		}
		w.broker = realKafka{k}
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find myself: %w", err)
	}
	b, err := testenv.StartBroker(ctx, testenv.BrokerOptions{Dir: dir, Command: []string{self, brokerChild}})
	if err != nil {
		return fmt.Errorf("start kfake: %w", err)
	}
	w.broker = fakeKafka{b}
	return nil
}

// stop ends the servers and deletes the folder.
func (w *world) stop() error {
	var errs []error
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

// lost notes that a server did not come back.
func (w *world) lost(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = errors.Join(w.err, err)
}

func (w *world) broken() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// connect opens a connection that no proxy is on.
func (w *world) connect(ctx context.Context, database string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, w.postgres.URL(database))
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	return conn, nil
}

// client opens a Kafka client that no proxy is on.
func (w *world) client(opts ...kgo.Opt) (*kgo.Client, error) {
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(w.broker.Addr()), kgo.MetadataMinAge(100*time.Millisecond), kgo.AlwaysRetryEOF(), // a broker that dies in the first answer
		kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }))...)
	if err != nil {
		return nil, fmt.Errorf("make Kafka client: %w", err)
	}
	return client, nil
}

// freePort gives a loopback port below the ephemeral range, so that no outgoing
// connection takes it while its listener is down.
func freePort() (int, error) {
	for range 200 {
		port := 10000 + rand.IntN(10000) //nolint:gosec // any will do; it is no part of what repeats
		if l, err := net.Listen("tcp", loopback(port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("find a free port: none between 10000 and 20000")
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// pause waits for d; false: ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
