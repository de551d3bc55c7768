// Package testenv runs real servers on loopback for the tests, the demo, the
// benchmark and the chaos test: Postgres, kfake as a broker process with a data
// folder, and Apache Kafka where its jars are at hand.
//
// Every server is a child in its own process group and, on Linux, ends with
// this process, however that ends. A crash test can stop, kill and restart each
// one on the same port and data.
package testenv

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// PostgresOptions configure a Postgres server.
type PostgresOptions struct {
	// Dir holds the data directory, the sockets and the log. StartPostgres
	// creates a missing folder. If this process is root, the folder is given to
	// the user that Postgres runs as, who must be able to reach it: see
	// TempDir.
	Dir string
	// BinDir holds initdb and postgres; "" asks FindPostgres, with the user's cache
	// as the place for a download.
	BinDir string
	// Port on 127.0.0.1; 0 chooses a free one, kept over restarts.
	Port int
	// Settings are server settings that override the defaults below.
	Settings map[string]string
	// Password of the superuser. With "" the server trusts every user of the
	// machine, which is for tests alone.
	Password string
}

// defaultSettings have logical replication, many slots, since every daemon of a
// test owns one, and connections for many small pools.
var defaultSettings = map[string]string{
	"listen_addresses":      "127.0.0.1",
	"wal_level":             "logical",
	"max_replication_slots": "64",
	"max_wal_senders":       "64",
	"max_connections":       "200",
}

const (
	postgresReadyLimit = 60 * time.Second // including crash recovery
	postgresStopLimit  = 15 * time.Second // per signal of Stop
)

// Postgres is one server. Its methods are for one goroutine at a time.
type Postgres struct {
	opts  PostgresOptions
	user  *serverUser // nil: the user of this process
	child *Child
}

// StartPostgres makes the data directory if it is empty, starts the server and
// returns once the server accepts connections. The superuser is postgres; the
// server listens on loopback only.
func StartPostgres(ctx context.Context, o PostgresOptions) (*Postgres, error) {
	user, err := postgresUser()
	if err != nil {
		return nil, err
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, fmt.Errorf("resolve Postgres folder: %w", err)
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make Postgres folder: %w", err)
	}
	if o.BinDir == "" {
		if o.BinDir, err = FindPostgres(ctx, ""); err != nil {
			return nil, err
		}
	}
	p := &Postgres{opts: o, user: user}
	if err := p.initCluster(ctx); err != nil {
		return nil, err
	}
	return p, p.startOnFreePort(ctx)
}

// startOnFreePort tries further ports if the options name none: another process
// may take a port between the choice and the server's bind.
func (p *Postgres) startOnFreePort(ctx context.Context) error {
	if p.opts.Port != 0 {
		return p.Start(ctx)
	}
	const tries = 3
	var err error
	for range tries {
		if p.opts.Port, err = FreePort(); err != nil {
			return err
		}
		if err = p.Start(ctx); !errors.Is(err, ErrExited) {
			return err
		}
	}
	return err
}

// initCluster runs initdb unless the data directory holds a cluster.
func (p *Postgres) initCluster(ctx context.Context) error {
	sockets := filepath.Join(p.opts.Dir, "sockets")
	if err := os.MkdirAll(sockets, 0o755); err != nil {
		return fmt.Errorf("make socket folder: %w", err)
	}
	if p.user != nil {
		if err := p.user.giveFolder(p.opts.Dir); err != nil {
			return fmt.Errorf("give %s to %s: %w", p.opts.Dir, p.user.name, err)
		}
		if err := p.user.checkReach(p.opts.Dir); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join(p.dataDir(), "PG_VERSION")); err == nil {
		return nil
	}
	auth, forget, err := p.authArgs()
	if err != nil {
		return err
	}
	defer forget()
	// --no-sync: the data need not survive a crash of the machine.
	cmd := exec.CommandContext(ctx, filepath.Join(p.opts.BinDir, "initdb"), append(auth, "-D", p.dataDir(), "-U", "postgres",
		"--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")...)
	cmd.Dir = p.opts.Dir
	cmd.Env = serverEnv()
	if p.user != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.user.processCredential()}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run initdb in %s: %w\n%s", p.dataDir(), err, out)
	}
	return nil
}

// authArgs returns initdb's arguments. The password goes through a file, since
// arguments are visible to all users; forget removes the file.
func (p *Postgres) authArgs() (args []string, forget func(), err error) {
	if p.opts.Password == "" {
		return []string{"--auth=trust"}, func() {}, nil
	}
	path := filepath.Join(p.opts.Dir, "password")
	forget = func() { _ = os.Remove(path) }
	if err := os.WriteFile(path, []byte(p.opts.Password+"\n"), 0o600); err != nil {
		return nil, forget, fmt.Errorf("write password for initdb: %w", err)
	}
	if p.user != nil {
		if err := os.Chown(path, int(p.user.uid), int(p.user.gid)); err != nil {
			return nil, forget, fmt.Errorf("give password to %s: %w", p.user.name, err)
		}
	}
	return []string{"--auth=scram-sha-256", "--pwfile=" + path}, forget, nil
}

// Start starts a server that was stopped or killed, on the same port, and
// returns once it accepts connections, after crash recovery if necessary.
func (p *Postgres) Start(ctx context.Context) error {
	if p.child.Running() {
		return nil
	}
	cmd := exec.Command(filepath.Join(p.opts.BinDir, "postgres"), p.settingArgs()...)
	cmd.Dir = p.opts.Dir
	cmd.Env = serverEnv()
	// SIGQUIT is Postgres' immediate shutdown: the postmaster ends its children
	// and frees its shared memory.
	child, err := startChildAs(p.user, cmd, filepath.Join(p.opts.Dir, "postgres.log"), syscall.SIGQUIT)
	if err != nil {
		return err
	}
	p.child = child
	if err := child.AwaitReady(ctx, postgresReadyLimit, pollInterval, p.tryConnect); err != nil {
		return errors.Join(fmt.Errorf("start Postgres on port %d: %w", p.opts.Port, err), p.Kill())
	}
	return nil
}

// settingArgs turns the settings into -c options, which override
// postgresql.conf.
func (p *Postgres) settingArgs() []string {
	settings := maps.Clone(defaultSettings)
	settings["unix_socket_directories"] = p.socketDir()
	maps.Copy(settings, p.opts.Settings)
	args := []string{"-D", p.dataDir(), "-p", strconv.Itoa(p.opts.Port)}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

// socketDir is "" (no sockets) if the path exceeds sun_path, which holds 104
// bytes on the strictest system. TCP always works.
func (p *Postgres) socketDir() string {
	dir := filepath.Join(p.opts.Dir, "sockets")
	if len(dir)+len("/.s.PGSQL.65535.lock") > 100 || strings.ContainsAny(dir, `,"`) {
		return ""
	}
	return dir
}

// tryConnect opens and closes one connection.
func (p *Postgres) tryConnect(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// URL is the connection string of a database ("" is postgres) for the
// superuser.
func (p *Postgres) URL(db string) string {
	u := url.URL{
		Scheme: "postgres", User: url.User("postgres"), Host: Loopback(p.opts.Port),
		Path: "/" + cmp.Or(db, "postgres"), RawQuery: "sslmode=disable",
	}
	if p.opts.Password != "" {
		u.User = url.UserPassword("postgres", p.opts.Password)
	}
	return u.String()
}

// Set changes a server setting; the next start applies it.
func (p *Postgres) Set(name, value string) {
	settings := maps.Clone(p.opts.Settings)
	if settings == nil {
		settings = map[string]string{}
	}
	settings[name] = value
	p.opts.Settings = settings
}

// Port is the server's port on 127.0.0.1.
func (p *Postgres) Port() int { return p.opts.Port }

// BinDir is the folder of the server's programs, with psql if the distribution
// has it there.
func (p *Postgres) BinDir() string { return p.opts.BinDir }

// PID is the postmaster's process id, 0 when the server does not run.
func (p *Postgres) PID() int {
	if !p.child.Running() {
		return 0
	}
	return p.child.PID()
}

// Stop makes a fast shutdown: the server rolls open transactions back and
// writes all data out. After 15 seconds (a walsender may wait for its client),
// Stop orders an immediate shutdown, and after 15 more it kills the server;
// both leave crash recovery to the next start.
func (p *Postgres) Stop() error {
	if !p.child.Running() {
		return nil
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT} {
		if err := p.child.Signal(sig); err != nil {
			return err
		}
		if p.child.Wait(postgresStopLimit) {
			return nil
		}
	}
	return p.Kill()
}

// Kill sends SIGKILL to the postmaster and each of its children, as a crash,
// and returns when all are gone, so that port and shared memory are free.
//
// A signal to the process group would not reach the backends, since each calls
// setsid. Kill halts the postmaster first, so that it starts no further child.
func (p *Postgres) Kill() error {
	if !p.child.Running() {
		return nil
	}
	if err := p.child.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	pids := childrenOf(p.child.PID())
	if err := p.child.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill Postgres child %d: %w", pid, err)
		}
	}
	<-p.child.done
	return awaitGone(pids, postgresStopLimit)
}

// awaitGone waits until all of pids have ended.
func awaitGone(pids []int, limit time.Duration) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); slices.ContainsFunc(pids, isAlive); <-tick.C {
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for killed processes %v: still there after %s", pids, limit)
		}
	}
	return nil
}

func (p *Postgres) dataDir() string { return filepath.Join(p.opts.Dir, "data") }

// serverEnv is this process's environment without the PG* variables, which
// would redirect the servers' programs, and with English messages.
func serverEnv() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG")
	})
	return append(env, "LC_ALL=C")
}
