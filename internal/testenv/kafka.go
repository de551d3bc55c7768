package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// KafkaOptions configure an Apache Kafka server.
type KafkaOptions struct {
	// Script is scripts/kafka.sh, which holds the server's configuration and
	// fetches its jars on first use. It needs Java 17 and, for the download,
	// Maven.
	Script string
	// Dir holds the server's data and log; created if missing.
	Dir string
	// Port and ControllerPort on 127.0.0.1; 0 chooses free ones, kept over
	// restarts.
	Port, ControllerPort int
	// Settings are lines for server.properties that override those of Script.
	Settings []string
}

const (
	kafkaReadyLimit = 10 * time.Minute // a first start downloads 45 MB, and one on a starved machine took six minutes
	kafkaStopLimit  = 30 * time.Second
)

// Kafka is one Apache Kafka node in KRaft mode. Unlike a Broker it may be
// killed. Its methods are for one goroutine at a time.
type Kafka struct {
	opts  KafkaOptions
	child *Child
}

// StartKafka formats an empty folder, starts the server and returns once the
// server answers.
func StartKafka(ctx context.Context, o KafkaOptions) (*Kafka, error) {
	var err error
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, fmt.Errorf("resolve Kafka folder: %w", err)
	}
	if err := os.MkdirAll(o.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("make Kafka folder: %w", err)
	}
	for _, port := range []*int{&o.Port, &o.ControllerPort} {
		if *port != 0 {
			continue
		}
		if *port, err = FreePort(); err != nil {
			return nil, err
		}
	}
	k := &Kafka{opts: o}
	return k, k.Start(ctx)
}

// Addr is host:port of the broker, the same over restarts.
func (k *Kafka) Addr() string { return Loopback(k.opts.Port) }

// PID is the process id of the running server.
func (k *Kafka) PID() int { return k.child.PID() }

// Start starts a stopped or killed server on the same ports and data. After a
// Kill this takes some seconds: the controller refuses the broker until the
// session before has expired.
func (k *Kafka) Start(ctx context.Context) error {
	if k.child.Running() {
		return nil
	}
	// The script ends with exec, so its process id becomes the server's.
	cmd := exec.Command(k.opts.Script, "run", k.opts.Dir, strconv.Itoa(k.opts.Port), strconv.Itoa(k.opts.ControllerPort))
	cmd.Env = append(os.Environ(), "KAFKA_SETTINGS="+strings.Join(k.opts.Settings, "\n"))
	child, err := StartChild(cmd, filepath.Join(k.opts.Dir, "kafka.log"), syscall.SIGKILL)
	if err != nil {
		return err
	}
	k.child = child
	if err := awaitBroker(ctx, child, k.Addr(), kafkaReadyLimit); err != nil {
		return errors.Join(fmt.Errorf("start Kafka on %s: %w", k.Addr(), err), k.Kill())
	}
	return nil
}

// Set adds a line to server.properties, where the last one of a name wins; the next start
// applies it.
func (k *Kafka) Set(line string) {
	k.opts.Settings = append(slices.Clone(k.opts.Settings), line)
}

// Stop shuts the server down, and kills it if that takes more than 30 seconds.
func (k *Kafka) Stop() error {
	if !k.child.Running() {
		return nil
	}
	if err := k.child.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if k.child.Wait(kafkaStopLimit) {
		return nil
	}
	return k.Kill()
}

// Kill sends SIGKILL to the server and the script's helpers, as a crash, and
// returns when the server is gone.
func (k *Kafka) Kill() error {
	if !k.child.Running() {
		return nil
	}
	if err := syscall.Kill(-k.child.PID(), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill Kafka (pid %d): %w", k.child.PID(), err)
	}
	<-k.child.done
	return nil
}
