package deployment

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

// The topics of a deployment; the configuration's defaults.
const (
	topicCampaigns     = "campaigns"
	topicNotifications = "notifications"
)

// Deployment is dinnerbell with its own database, topics and state. Its daemon
// runs only while it is measured.
type Deployment struct {
	servers                            *Servers
	binary                             string
	Database                           *Database
	Broker                             string
	CampaignsTopic, NotificationsTopic string
	Dir                                string
	httpAddress                        string // host:port
	Daemon                             *Child // nil: stopped
}

// NewDeployment makes the database with the population's subscriptions, the
// topics and the configuration, and runs setup. prefix comes before the names
// of topics and group.
func NewDeployment(ctx context.Context, s *Servers, binary, name, broker, prefix string, p *CampaignProducer, t *Population) (*Deployment, error) {
	d := &Deployment{servers: s, binary: binary, Broker: broker, Dir: filepath.Join(s.Dir, name), CampaignsTopic: prefix + topicCampaigns, NotificationsTopic: prefix + topicNotifications}
	if err := os.MkdirAll(d.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("make folder of %s: %w", name, err)
	}
	var err error
	if d.Database, err = s.NewDatabase(ctx, name); err != nil {
		return nil, err
	}
	if err := d.Database.Fill(ctx, t); err != nil {
		return nil, err
	}
	if err := p.CreateTopics(ctx, d.CampaignsTopic, d.NotificationsTopic); err != nil {
		return nil, err
	}
	if err := d.writeConfig(name, prefix); err != nil {
		return nil, err
	}
	return d, d.RunCommand(ctx, "setup")
}

// writeConfig writes the configuration as JSON, which is YAML.
func (d *Deployment) writeConfig(name, prefix string) error {
	port, err := testenv.FreePort()
	if err != nil {
		return err
	}
	d.httpAddress = testenv.Loopback(port)
	text, err := json.MarshalIndent(map[string]any{
		"source": map[string]any{"url": d.Database.URL, "slot": "slot_" + name},
		"kafka": map[string]any{"brokers": []string{d.Broker}, "campaigns": d.CampaignsTopic, "notifications": d.NotificationsTopic,
			"dead_letters": prefix + "campaigns.dead", "progress": prefix + "dinnerbell.progress", "group": prefix + "dinnerbell"},
		"state": map[string]any{"dir": d.StateDir()},
		"http":  map[string]any{"listen": d.httpAddress},
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.WriteFile(d.configPath(), text, 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

// SetLateSubscribers sets join.late_subscribers of a stopped daemon, and runs setup.
func (d *Deployment) SetLateSubscribers(ctx context.Context, on bool) error {
	if err := d.setSection("join", map[string]any{"late_subscribers": on}); err != nil {
		return err
	}
	return d.RunCommand(ctx, "setup")
}

// SetHistory sets state.history of a stopped daemon: its default, or none.
func (d *Deployment) SetHistory(on bool) error {
	state := map[string]any{"dir": d.StateDir()}
	if !on {
		state["history"] = map[string]any{"size": 0}
	}
	return d.setSection("state", state)
}

// setSection replaces a section of the configuration.
func (d *Deployment) setSection(name string, section map[string]any) error {
	text, err := os.ReadFile(d.configPath())
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	cfg := map[string]any{}
	if err := json.Unmarshal(text, &cfg); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	cfg[name] = section
	if text, err = json.MarshalIndent(cfg, "", "  "); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.WriteFile(d.configPath(), text, 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

func (d *Deployment) configPath() string { return filepath.Join(d.Dir, "dinnerbell.yaml") }

// StateDir is the daemon's state.dir.
func (d *Deployment) StateDir() string { return filepath.Join(d.Dir, "state") }

// RunCommand runs a short command of the daemon's binary.
func (d *Deployment) RunCommand(ctx context.Context, args ...string) error {
	return RunCommand(ctx, d.binary, append([]string{"-c", d.configPath()}, args...)...)
}

// Launch starts the daemon and returns at once.
func (d *Deployment) Launch() error {
	var err error
	d.Daemon, err = StartChild(filepath.Join(d.Dir, "daemon.log"), d.binary, "-c", d.configPath(), "run")
	return err
}

// Start starts the daemon and returns when it is ready and has caught up with
// the WAL of the other contenders.
func (d *Deployment) Start(ctx context.Context) error {
	if d.Daemon != nil {
		return nil
	}
	if err := d.Launch(); err != nil {
		return err
	}
	if err := d.AwaitReady(ctx); err != nil {
		return err
	}
	return d.CatchUp(ctx)
}

// AwaitReady waits until /readyz answers 200.
func (d *Deployment) AwaitReady(ctx context.Context) error {
	return d.Daemon.awaitReady(ctx, func() error {
		_, err := d.getPath(ctx, "/readyz")
		return err
	})
}

// CatchUp waits until the mirror has applied every transaction committed so
// far.
func (d *Deployment) CatchUp(ctx context.Context) error {
	lsn, err := WriteMark(ctx, d.Database)
	if err != nil {
		return err
	}
	return d.AwaitApplied(ctx, lsn)
}

// AwaitApplied waits until the mirror has applied the WAL up to lsn.
func (d *Deployment) AwaitApplied(ctx context.Context, lsn uint64) error {
	return d.Daemon.awaitReady(ctx, func() error {
		st, err := d.Status(ctx)
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

// WriteMark writes a message into the WAL and returns its position. The stream
// passes this position for certain; an idle server may never send up to others.
func WriteMark(ctx context.Context, db *Database) (uint64, error) {
	var text string
	if err := db.Conn.QueryRow(ctx, `SELECT pg_logical_emit_message(true, 'bench', '')::text`).Scan(&text); err != nil {
		return 0, fmt.Errorf("write a mark: %w", err)
	}
	return parseLSN(text)
}

// parseLSN parses the form 16/B374D848.
func parseLSN(text string) (uint64, error) {
	high, low, ok := strings.Cut(text, "/")
	h, err1 := strconv.ParseUint(high, 16, 32)
	l, err2 := strconv.ParseUint(low, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("read position %q: %w", text, errors.Join(err1, err2))
	}
	return h<<32 | l, nil
}

// Stop drains the daemon.
func (d *Deployment) Stop() error {
	if d == nil || d.Daemon == nil {
		return nil
	}
	c := d.Daemon
	d.Daemon = nil
	return c.Stop(StopLimit)
}

// Kill crashes the daemon.
func (d *Deployment) Kill() error {
	c := d.Daemon
	d.Daemon = nil
	return c.Kill()
}

// DaemonStatus is the part of /api/status that the benchmark reads.
type DaemonStatus struct {
	Source struct {
		AppliedLSN    string `json:"applied_lsn"`
		Subscriptions int64  `json:"subscriptions"`
	} `json:"source"`
	Lanes []struct {
		Decided int64 `json:"decided"` // steps
		Shipped int64 `json:"shipped"`
	} `json:"lanes"`
	Notifications struct {
		Decided int64 `json:"decided"`
		Shipped int64 `json:"shipped"`
	} `json:"notifications"`
}

// Status reads /api/status.
func (d *Deployment) Status(ctx context.Context) (DaemonStatus, error) {
	var s DaemonStatus
	body, err := d.getPath(ctx, "/api/status")
	if err == nil {
		err = json.Unmarshal(body, &s)
	}
	return s, err
}

func (d *Deployment) getPath(ctx context.Context, path string) ([]byte, error) {
	return testenv.Get(ctx, "http://"+d.httpAddress+path)
}

// AwaitShipped waits until the daemon has shipped n notifications since the
// deployment began. A shipped notification is committed in Kafka, and before
// that in Postgres.
func (d *Deployment) AwaitShipped(ctx context.Context, n int64) error {
	return d.Daemon.AwaitCount(ctx, n, func() (int64, error) {
		s, err := d.Status(ctx)
		return s.Notifications.Shipped, err
	})
}
