package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"dinnerbell/internal/testenv"
)

// servers are Postgres and the brokers of one run, in one folder.
type servers struct {
	dir      string
	postgres *testenv.Postgres
	kfake    *testenv.Broker
	kafka    *testenv.Kafka
}

// postgresSettings are the same for all contenders. A checkpoint is made before
// each measurement, so none is due in its middle; memory is what a small server
// is given. fsync and synchronous_commit stay on.
var postgresSettings = map[string]string{
	"shared_buffers":       "1GB",
	"max_wal_size":         "16GB",
	"checkpoint_timeout":   "1h",
	"maintenance_work_mem": "512MB",
	"wal_buffers":          "16MB",
}

func startServers(ctx context.Context) (_ *servers, err error) {
	dir, err := testenv.TempDir("dinnerbell-bench-")
	if err != nil {
		return nil, err
	}
	s := &servers{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop(false))
		}
	}()
	s.postgres, err = testenv.StartPostgres(ctx, testenv.PostgresOptions{
		Dir: filepath.Join(dir, "postgres"), Settings: postgresSettings,
	})
	if err != nil {
		return s, fmt.Errorf("start Postgres: %w", err)
	}
	return s, nil
}

// brokerCommand as the first argument turns this program into a kfake broker:
// the broker is then the same whatever revision of the daemon is measured.
const brokerCommand = "serve-broker"

// kindKafka is the broker that runs in a JVM.
const kindKafka = "kafka"

// broker starts a broker of the kind (kfake, kafka) and returns its address.
func (s *servers) broker(ctx context.Context, kind string) (string, error) {
	if kind == kindKafka {
		var err error
		s.kafka, err = testenv.StartKafka(ctx, testenv.KafkaOptions{
			Script: filepath.Join("scripts", "kafka.sh"), Dir: filepath.Join(s.dir, "kafka"),
		})
		if err != nil {
			return "", fmt.Errorf("start Kafka: %w", err)
		}
		return s.kafka.Addr(), nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own program: %w", err)
	}
	s.kfake, err = testenv.StartBroker(ctx, testenv.BrokerOptions{
		Dir: filepath.Join(s.dir, "kfake"), Command: []string{self, brokerCommand},
	})
	if err != nil {
		return "", fmt.Errorf("start kfake: %w", err)
	}
	return s.kfake.Addr(), nil
}

// stopBroker ends the broker of a kind: two would share the cores.
func (s *servers) stopBroker(kind string) error {
	switch {
	case kind == kindKafka && s.kafka != nil:
		return s.kafka.Stop()
	case kind == "kfake" && s.kfake != nil:
		return s.kfake.Stop()
	}
	return nil
}

// stop ends everything and removes the folder.
func (s *servers) stop(keep bool) error {
	errs := []error{s.stopBroker("kfake"), s.stopBroker(kindKafka)}
	if s.postgres != nil {
		errs = append(errs, s.postgres.Stop())
	}
	if !keep {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}
