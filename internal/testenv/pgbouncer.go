package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// PgBouncerOptions configure a PgBouncer.
type PgBouncerOptions struct {
	Dir    string // for its files; reachable by the user that Postgres runs as
	Server int    // port of the Postgres behind it
	User   string // the user that may connect, without a password
	// Settings go into pgbouncer.ini, such as "pool_mode": "transaction".
	Settings map[string]string
}

// ErrNoPgBouncer means that PgBouncer is not installed.
var ErrNoPgBouncer = errors.New("no pgbouncer is installed")

// PgBouncer is a connection pooler in front of a Postgres, for tests of clients
// that connect through a pooler.
type PgBouncer struct {
	child *Child
	port  int
}

// StartPgBouncer starts a PgBouncer on loopback and returns when it accepts
// connections.
func StartPgBouncer(ctx context.Context, o PgBouncerOptions) (*PgBouncer, error) {
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/pgbouncer") // not in every PATH
	}
	if err != nil {
		return nil, ErrNoPgBouncer
	}
	user, err := postgresUser()
	if err != nil {
		return nil, err
	}
	b := &PgBouncer{}
	if b.port, err = FreePort(); err != nil {
		return nil, err
	}
	config, err := o.writeConfig(b.port)
	if err != nil {
		return nil, fmt.Errorf("write pgbouncer.ini: %w", err)
	}
	cmd := exec.Command(program, "-q", config)
	cmd.Dir = o.Dir
	if b.child, err = startChildAs(user, cmd, "", syscall.SIGKILL); err != nil {
		return nil, err
	}
	err = b.child.AwaitReady(ctx, 10*time.Second, pollInterval, func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", Loopback(b.port))
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start pgbouncer: %w", err), b.Stop())
	}
	return b, nil
}

// writeConfig writes PgBouncer's two files and returns the path of
// pgbouncer.ini.
func (o *PgBouncerOptions) writeConfig(port int) (string, error) {
	users := filepath.Join(o.Dir, "users.txt")
	var ini strings.Builder
	fmt.Fprintf(&ini, "[databases]\n* = host=127.0.0.1 port=%d\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\n"+
		"unix_socket_dir =\nauth_type = trust\nauth_file = %s\n", o.Server, port, users)
	for name, value := range o.Settings {
		fmt.Fprintf(&ini, "%s = %s\n", name, value)
	}
	config := filepath.Join(o.Dir, "pgbouncer.ini")
	return config, errors.Join(
		os.WriteFile(users, []byte(strconv.Quote(o.User)+" \"\"\n"), 0o644),
		os.WriteFile(config, []byte(ini.String()), 0o644))
}

// Port is the port on 127.0.0.1.
func (b *PgBouncer) Port() int { return b.port }

// Stop ends PgBouncer and its connections at once.
func (b *PgBouncer) Stop() error {
	if !b.child.Running() {
		return nil
	}
	return b.child.Kill()
}
