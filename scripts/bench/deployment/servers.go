// Package deployment runs the servers of the benchmark and, on them, databases,
// topics and the daemon.
package deployment

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"dinnerbell/internal/testenv"
)

// Servers are Postgres and the brokers of one run. They share a folder.
type Servers struct {
	Dir      string
	Postgres *testenv.Postgres
	Kfake    *testenv.Broker
	Kafka    *testenv.Kafka
}

// postgresSettings are the same for all contenders. ResetFeedback makes a
// checkpoint before each measurement, so none is due during it. The memory is
// that of a small server. fsync and synchronous_commit stay on.
var postgresSettings = map[string]string{
	"shared_buffers":       "1GB",
	"max_wal_size":         "16GB",
	"checkpoint_timeout":   "1h",
	"maintenance_work_mem": "512MB",
	"wal_buffers":          "16MB",
}

// StartServers starts Postgres in a new folder.
func StartServers(ctx context.Context) (_ *Servers, err error) {
	dir, err := testenv.TempDir("dinnerbell-bench-")
	if err != nil {
		return nil, err
	}
	s := &Servers{Dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop(false))
		}
	}()
	s.Postgres, err = testenv.StartPostgres(ctx, testenv.PostgresOptions{
		Dir: filepath.Join(dir, "postgres"), Settings: postgresSettings,
	})
	if err != nil {
		return s, fmt.Errorf("start Postgres: %w", err)
	}
	return s, nil
}

// BrokerCommand as the first argument turns this program into a kfake broker,
// so that every revision of the daemon is measured with the same broker.
const BrokerCommand = "serve-broker"

// KindKafka is Apache Kafka, which runs in a JVM.
const KindKafka = "kafka"

// StartBroker starts a broker of the kind (kfake, kafka) and returns its address.
func (s *Servers) StartBroker(ctx context.Context, kind string) (string, error) {
	if kind == KindKafka {
		var err error
		s.Kafka, err = testenv.StartKafka(ctx, testenv.KafkaOptions{
			Script: filepath.Join("scripts", "kafka.sh"), Dir: filepath.Join(s.Dir, "kafka"),
		})
		if err != nil {
			return "", fmt.Errorf("start Kafka: %w", err)
		}
		return s.Kafka.Addr(), nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own program: %w", err)
	}
	s.Kfake, err = testenv.StartBroker(ctx, testenv.BrokerOptions{
		Dir: filepath.Join(s.Dir, "kfake"), Command: []string{self, BrokerCommand},
	})
	if err != nil {
		return "", fmt.Errorf("start kfake: %w", err)
	}
	return s.Kfake.Addr(), nil
}

// StopBroker ends the broker of a kind. Two brokers would share the cores.
func (s *Servers) StopBroker(kind string) error {
	switch {
	case kind == KindKafka && s.Kafka != nil:
		return s.Kafka.Stop()
	case kind == "kfake" && s.Kfake != nil:
		return s.Kfake.Stop()
	}
	return nil
}

// Stop ends the servers and removes the folder.
func (s *Servers) Stop(keep bool) error {
	errs := []error{s.StopBroker("kfake"), s.StopBroker(KindKafka)}
	if s.Postgres != nil {
		errs = append(errs, s.Postgres.Stop())
	}
	if !keep {
		errs = append(errs, os.RemoveAll(s.Dir))
	}
	return errors.Join(errs...)
}
