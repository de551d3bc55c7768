package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"dinnerbell/internal/testenv"
)

// Topics of the daemon's deployments; the configuration's defaults.
const (
	topicCampaigns     = "campaigns"
	topicNotifications = "notifications"
)

// deployment is dinnerbell with a database, topics and state of its own. Its
// daemon runs only while it is measured.
type deployment struct {
	servers *servers
	binary  string
	db      *database
	broker  string
	in, out string // topics
	dir     string
	http    string // host:port
	daemon  *child // nil: stopped
}

// deploy makes the database with the population's subscriptions, the topics and the
// configuration, and runs setup. Names begin with prefix where that is not "".
func deploy(ctx context.Context, s *servers, binary, name, broker, prefix string, p *producer, t *population) (*deployment, error) {
	d := &deployment{servers: s, binary: binary, broker: broker, dir: filepath.Join(s.dir, name), in: prefix + topicCampaigns, out: prefix + topicNotifications}
	if err := os.MkdirAll(d.dir, 0o750); err != nil {
		return nil, fmt.Errorf("make folder of %s: %w", name, err)
	}
	var err error
	if d.db, err = s.newDatabase(ctx, name); err != nil {
		return nil, err
	}
	if err := d.db.fill(ctx, t); err != nil {
		return nil, err
	}
	if err := p.createTopics(ctx, d.in, d.out); err != nil {
		return nil, err
	}
	if err := d.configure(name, prefix); err != nil {
		return nil, err
	}
	return d, d.command(ctx, "setup")
}

// configure writes the configuration that a user would write; JSON is YAML.
func (d *deployment) configure(name, prefix string) error {
	port, err := testenv.FreePort()
	if err != nil {
		return err
	}
	d.http = testenv.Loopback(port)
	text, err := json.MarshalIndent(map[string]any{
		"source": map[string]any{"url": d.db.url, "slot": "slot_" + name},
		"kafka": map[string]any{"brokers": []string{d.broker}, "campaigns": d.in, "notifications": d.out,
			"dead_letters": prefix + "campaigns.dead", "progress": prefix + "dinnerbell.progress", "group": prefix + "dinnerbell"},
		"state": map[string]any{"dir": d.stateDir()},
		"http":  map[string]any{"listen": d.http},
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.WriteFile(d.config(), text, 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

func (d *deployment) config() string   { return filepath.Join(d.dir, "dinnerbell.yaml") }
func (d *deployment) stateDir() string { return filepath.Join(d.dir, "state") }

// command runs a short command of the binary.
func (d *deployment) command(ctx context.Context, args ...string) error {
	return runCommand(ctx, d.binary, append([]string{"-c", d.config()}, args...)...)
}

// launch starts the daemon and returns at once.
func (d *deployment) launch() error {
	var err error
	d.daemon, err = startChild(filepath.Join(d.dir, "daemon.log"), d.binary, "-c", d.config(), "run")
	return err
}

// start starts the daemon and returns when it is ready and has caught up with
// the WAL that others left behind.
func (d *deployment) start(ctx context.Context) error {
	if d.daemon != nil {
		return nil
	}
	if err := d.launch(); err != nil {
		return err
	}
	if err := d.ready(ctx); err != nil {
		return err
	}
	return d.catchUp(ctx)
}

// ready waits until /readyz says so.
func (d *deployment) ready(ctx context.Context) error {
	return d.daemon.await(ctx, func() error {
		_, err := d.get(ctx, "/readyz")
		return err
	})
}

// catchUp waits until the mirror has applied everything committed so far.
func (d *deployment) catchUp(ctx context.Context) error {
	lsn, err := mark(ctx, d.db)
	if err != nil {
		return err
	}
	return d.applied(ctx, lsn)
}

// applied waits until the mirror has come to a position.
func (d *deployment) applied(ctx context.Context, lsn uint64) error {
	return d.daemon.await(ctx, func() error {
		st, err := d.status(ctx)
		if err != nil {
			return err
		}
		at, err := parseLSN(st.Source.AppliedLSN)
		if err == nil && at < lsn {
			err = fmt.Errorf("applied %s, waiting for %X/%X", st.Source.AppliedLSN, lsn>>32, uint32(lsn))
		}
		return err
	})
}

// mark writes a message into the WAL and returns its position, which the
// stream passes: an idle server may never send up to other positions.
func mark(ctx context.Context, db *database) (uint64, error) {
	var text string
	if err := db.conn.QueryRow(ctx, `SELECT pg_logical_emit_message(true, 'bench', '')::text`).Scan(&text); err != nil {
		return 0, fmt.Errorf("write a mark: %w", err)
	}
	return parseLSN(text)
}

// parseLSN reads Postgres' 16/B374D848.
func parseLSN(text string) (uint64, error) {
	high, low, ok := strings.Cut(text, "/")
	h, err1 := strconv.ParseUint(high, 16, 32)
	l, err2 := strconv.ParseUint(low, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("read position %q: %w", text, errors.Join(err1, err2))
	}
	return h<<32 | l, nil
}

// stop drains the daemon.
func (d *deployment) stop() error {
	if d == nil || d.daemon == nil {
		return nil
	}
	c := d.daemon
	d.daemon = nil
	return c.Stop(stopLimit)
}

// kill crashes the daemon.
func (d *deployment) kill() error {
	c := d.daemon
	d.daemon = nil
	return c.Kill()
}

// status is the part of /api/status that is needed here.
type status struct {
	Source struct {
		AppliedLSN    string `json:"applied_lsn"`
		Subscriptions int64  `json:"subscriptions"`
	} `json:"source"`
	Notifications struct {
		Decided int64 `json:"decided"`
		Shipped int64 `json:"shipped"`
	} `json:"notifications"`
}

func (d *deployment) status(ctx context.Context) (status, error) {
	var s status
	body, err := d.get(ctx, "/api/status")
	if err == nil {
		err = json.Unmarshal(body, &s)
	}
	return s, err
}

func (d *deployment) get(ctx context.Context, path string) ([]byte, error) {
	return testenv.Get(ctx, "http://"+d.http+path)
}

// awaitShipped waits until n notifications were shipped since the deployment
// began: a shipped one is committed in Kafka, and in Postgres before that.
func (d *deployment) awaitShipped(ctx context.Context, n int64) error {
	return d.daemon.awaitCount(ctx, n, func() (int64, error) {
		s, err := d.status(ctx)
		return s.Notifications.Shipped, err
	})
}
