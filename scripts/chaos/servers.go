package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"dinnerbell/internal/testenv"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

// servers are the two servers and the folder that all rounds share. Rounds
// never share a database or a topic.
type servers struct {
	opts     *options
	dir      string
	binary   string // a copy of the daemon, which a build during the run does not change
	postgres *testenv.Postgres
	broker   broker

	mu      sync.Mutex // guards lostErr
	lostErr error      // a server did not restart: no further round can run
}

// broker is Kafka or kfake.
type broker interface {
	Addr() string
	Start(ctx context.Context) error
	Stop() error
	// crashBroker sends SIGKILL to Kafka, but SIGTERM to kfake, whose transactions a
	// SIGKILL tears.
	crashBroker() error
}

type realKafka struct{ *testenv.Kafka }

func (k realKafka) crashBroker() error { return k.Kill() }

type fakeKafka struct{ *testenv.Broker }

func (k fakeKafka) crashBroker() error { return k.Stop() }

// startServers makes a folder and starts the servers. Postgres runs without
// fsync: only processes are killed here, and the kernel keeps the writes of a
// killed process.
func startServers(ctx context.Context, o *options) (s *servers, err error) {
	s = &servers{opts: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stopServers())
		}
	}()
	if s.dir, err = testenv.TempDir("chaos-"); err != nil {
		return s, err
	}
	s.binary = filepath.Join(s.dir, "dinnerbell")
	text, err := os.ReadFile(o.binary)
	if err == nil {
		err = os.WriteFile(s.binary, text, 0o755) //nolint:gosec // a program
	}
	if err != nil {
		return s, fmt.Errorf("copy the daemon: %w; build it with: make build", err)
	}
	s.postgres, err = testenv.StartPostgres(ctx, testenv.PostgresOptions{
		Dir:      filepath.Join(s.dir, "postgres"),
		Settings: map[string]string{"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"},
	})
	if err != nil {
		return s, fmt.Errorf("start Postgres: %w", err)
	}
	return s, s.startBroker(ctx)
}

// soakKafka are a soak's settings of Kafka. The notifications of half an hour fill some
// segments of 8 MiB, and none of 1 GiB, Kafka's default. On a busy machine the controller
// fenced a broker with a session of three seconds, that of the rounds, every half minute.
var soakKafka = []string{"log.segment.bytes=8388608", "log.index.size.max.bytes=1048576", "broker.session.timeout.ms=12000"}

func (s *servers) startBroker(ctx context.Context) error {
	dir := filepath.Join(s.dir, "broker")
	if s.opts.broker == "kafka" {
		o := testenv.KafkaOptions{Script: s.opts.script, Dir: dir}
		if s.opts.soak > 0 {
			o.Settings = soakKafka
		}
		k, err := testenv.StartKafka(ctx, o)
		if err != nil {
			return fmt.Errorf("start Kafka: %w", err)
		}
		s.broker = realKafka{k}
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	b, err := testenv.StartBroker(ctx, testenv.BrokerOptions{Dir: dir, Command: []string{self, brokerChild}})
	if err != nil {
		return fmt.Errorf("start kfake: %w", err)
	}
	s.broker = fakeKafka{b}
	return nil
}

// stopServers ends the servers and deletes the folder.
func (s *servers) stopServers() error {
	var errs []error
	if s.broker != nil {
		errs = append(errs, s.broker.Stop())
	}
	if s.postgres != nil {
		errs = append(errs, s.postgres.Stop())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// noteLost records that a server did not restart.
func (s *servers) noteLost(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lostErr = errors.Join(s.lostErr, err)
}

func (s *servers) lostServer() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lostErr
}

// connectPostgres opens a connection without a proxy.
func (s *servers) connectPostgres(ctx context.Context, database string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.postgres.URL(database))
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	return conn, nil
}

// newKafkaClient opens a Kafka client without a proxy.
func (s *servers) newKafkaClient(opts ...kgo.Opt) (*kgo.Client, error) {
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(s.broker.Addr()), kgo.MetadataMinAge(100*time.Millisecond), kgo.AlwaysRetryEOF(), // the broker may die during the first answer
		kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }))...)
	if err != nil {
		return nil, fmt.Errorf("make Kafka client: %w", err)
	}
	return client, nil
}
