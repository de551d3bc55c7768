package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"text/tabwriter"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/config"
)

// errNoDaemon: nobody answers on the socket.
var errNoDaemon = errors.New("no daemon is running")

// statusCmd shows what the running daemon says about itself.
type statusCmd struct {
	JSON bool `help:"As JSON, the same as /api/status."`
}

// Run asks over the socket in state.dir. It needs no other key, so it works with
// a configuration that `run` would refuse.
func (c *statusCmd) Run(ctx context.Context, a *app) error {
	cfg, err := config.Load(a.configFile, a.env)
	if err != nil {
		return err
	}
	body, err := askDaemon(ctx, cfg.State.Dir, "/api/status")
	if err != nil {
		return err
	}
	if c.JSON {
		if _, err := a.stdout.Write(body); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
		return nil
	}
	var r statusReport
	if err := json.Unmarshal(body, &r); err != nil {
		return fmt.Errorf("read answer of the daemon: %w", err)
	}
	return printStatus(a.stdout, &r)
}

// askDaemon gets one path over the socket of the daemon that runs on stateDir.
func askDaemon(ctx context.Context, stateDir, path string) ([]byte, error) {
	socket, err := socketPath(stateDir)
	if err != nil {
		return nil, err
	}
	client := http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://dinnerbell"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask daemon: %w", err)
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w with state.dir %s (nobody listens on %s); start one with: dinnerbell run", errNoDaemon, stateDir, socket)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("ask daemon: %w; the socket is for the user that runs it", err)
	case err != nil:
		return nil, fmt.Errorf("ask daemon: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	var body bytes.Buffer
	if _, err := io.Copy(&body, io.LimitReader(resp.Body, 16<<20)); err != nil {
		return nil, fmt.Errorf("read answer of the daemon: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask daemon: %s: %s", resp.Status, bytes.TrimSpace(body.Bytes()))
	}
	return body.Bytes(), nil
}

// printStatus is for people: what matters first, lanes as a table.
func printStatus(out io.Writer, r *statusReport) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) { _, _ = fmt.Fprintf(w, name+"\t"+format+"\n", args...) } // Flush reports errors
	if r.Ready {
		row("ready", "yes")
	} else {
		row("ready", "NO")
	}
	for _, reason := range r.Reasons {
		row("", "%s", reason)
	}
	if h := r.Halted; h != nil {
		row("HALTED", "%s: %s", h.Part, h.What)
		row("", "to mend: %s", h.Hint)
	}
	row("version", "%s", r.Version)
	s := r.Source
	row("source", "%s at %s, %s behind, slot %s", s.State, s.AppliedLSN, byteCount(s.LagBytes), orDash(s.SlotWALStatus))
	if s.LastError != "" {
		row("", "last error: %s", s.LastError)
	}
	row("subscriptions", "%s", thousands(s.Subscriptions))
	row("freshness", "%.1f ms", s.FreshnessMS)
	row("campaigns", "%s live, %s scheduled, %s expired, %s dead", thousands(r.Campaigns.Live),
		thousands(r.Campaigns.Scheduled), thousands(r.Campaigns.Expired), thousands(r.Campaigns.Dead))
	row("notifications", "%s decided, %s shipped", thousands(r.Notifications.Decided), thousands(r.Notifications.Shipped))
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return printLanes(out, r.Lanes)
}

func printLanes(out io.Writer, lanes []laneReport) error {
	if len(lanes) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(w, "\nlane\tepoch\tdecided\tshipped\tnext offset\tstate\t\n")
	for _, l := range lanes {
		if l.WaitingForFreshness {
			l.State += ", waits for fresh subscriptions"
		}
		_, _ = fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t%s\t\n", l.Partition, l.Epoch, l.Decided, l.Shipped, l.NextOffset, orDash(l.State))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
