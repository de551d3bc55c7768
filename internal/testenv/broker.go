package testenv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// BrokerOptions configure a kfake broker.
type BrokerOptions struct {
	// Dir holds the broker's data and its log; created if missing.
	Dir string
	// Command is a program with its first arguments that calls ServeBroker.
	// StartBroker appends the data folder and the address to listen on. The
	// program must end ServeBroker's context on SIGTERM.
	Command []string
	// Port on 127.0.0.1; 0 chooses a free one, kept over restarts.
	Port int
}

const (
	brokerReadyLimit = 30 * time.Second
	brokerStopLimit  = 60 * time.Second // kfake writes its state to disk
)

// ErrBrokerStuck means that the broker did not end after SIGTERM. It keeps
// running, since SIGKILL would tear its transactions.
var ErrBrokerStuck = errors.New("broker does not end")

// Broker is a single kfake broker in a process of its own, which creates topics
// on request only. Its methods are for one goroutine at a time.
type Broker struct {
	opts  BrokerOptions
	child *Child
}

// PID is the process id of the running broker.
func (b *Broker) PID() int { return b.child.PID() }

// StartBroker starts the child and returns once the broker answers.
func StartBroker(ctx context.Context, o BrokerOptions) (*Broker, error) {
	if len(o.Command) == 0 {
		return nil, errors.New("start broker: no command")
	}
	if err := os.MkdirAll(o.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("make broker folder: %w", err)
	}
	if o.Port != 0 {
		b := &Broker{opts: o}
		return b, b.Start(ctx)
	}
	const tries = 3
	var err error
	for range tries {
		if o.Port, err = FreePort(); err != nil {
			return nil, err
		}
		b := &Broker{opts: o}
		if err = b.Start(ctx); err == nil {
			return b, nil
		}
		if !errors.Is(err, ErrExited) {
			return nil, err
		}
	}
	return nil, err
}

// Addr is host:port of the broker, the same over restarts.
func (b *Broker) Addr() string { return Loopback(b.opts.Port) }

// Start starts a stopped broker again on the same port and data and returns
// once it answers a metadata request.
func (b *Broker) Start(ctx context.Context) error {
	if b.child.Running() {
		return nil
	}
	args := slices.Concat(b.opts.Command[1:], []string{filepath.Join(b.opts.Dir, "data"), b.Addr()})
	cmd := exec.Command(b.opts.Command[0], args...)
	child, err := StartChild(cmd, filepath.Join(b.opts.Dir, "broker.log"), syscall.SIGTERM)
	if err != nil {
		return err
	}
	b.child = child
	if err := awaitBroker(ctx, child, b.Addr(), brokerReadyLimit); err != nil {
		return errors.Join(fmt.Errorf("start broker on %s: %w", b.Addr(), err), b.Stop())
	}
	return nil
}

// Stop ends the broker with SIGTERM and waits until it has written its data.
// Kill does not exist, for the reason at ErrBrokerStuck.
func (b *Broker) Stop() error {
	if !b.child.Running() {
		return nil
	}
	if err := b.child.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if !b.child.Wait(brokerStopLimit) {
		return fmt.Errorf("stop broker (pid %d): %w after %s", b.child.PID(), ErrBrokerStuck, brokerStopLimit)
	}
	return nil
}

// awaitBroker returns once the broker at addr answers a metadata request.
func awaitBroker(ctx context.Context, child *Child, addr string, limit time.Duration) error {
	return child.AwaitReady(ctx, limit, pollInterval, func(ctx context.Context) error {
		// Dial first: a client would retry with long pauses.
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		if err := conn.Close(); err != nil {
			return err
		}
		client, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.RetryTimeout(time.Second))
		if err != nil {
			return err
		}
		defer client.Close()
		meta, err := kadm.NewClient(client).BrokerMetadata(ctx)
		if err != nil {
			return err
		}
		if len(meta.Brokers) == 0 {
			return errors.New("broker lists no brokers yet")
		}
		return nil
	})
}

// ServeBroker is the child's side of StartBroker. It serves kfake from dir on
// listen (host:port on loopback) until ctx ends, then writes the state and
// returns. Topics are created on request only. Each folder keeps a cluster id
// of its own.
func ServeBroker(ctx context.Context, dir, listen string) error {
	_, portText, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("read broker address %q: %w", listen, err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return fmt.Errorf("read broker address %q: %w", listen, err)
	}
	cluster, err := kfake.NewCluster(
		kfake.Ports(port),
		kfake.ClusterID(rand.Text()), // for a new folder; the stored id wins
		kfake.DataDir(dir),
		kfake.DefaultNumPartitions(1),
		kfake.GroupMinSessionTimeout(time.Second), // so that the group drops a test's dead member soon
		kfake.WithLogger(kfake.BasicLogger(os.Stderr, kfake.LogLevelWarn)),
	)
	if err != nil {
		return fmt.Errorf("start kfake in %s: %w", dir, err)
	}
	<-ctx.Done()
	cluster.Close()
	return nil
}
