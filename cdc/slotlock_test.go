package cdc

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/cdc/source"
	"dinnerbell/internal/halt"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state"
)

// twin is a second mirror of the same configuration with a store in dir.
func (r *deployment) twin(dir string) (m *Mirror, ended <-chan error) {
	r.t.Helper()
	store, err := state.Open(dir, state.Options{ReserveBytes: -1})
	if err != nil {
		r.t.Fatal(err)
	}
	m = New(r.cfg, store)
	m.hooks.secondAlive = time.Second
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- m.Run(ctx)
		close(done)
	}()
	r.t.Cleanup(func() {
		stop()
		for range done {
		}
		if err := store.Close(); err != nil {
			r.t.Error(err)
		}
	})
	return m, done
}

// refused waits for the halt of the daemon that came second.
func (r *deployment) refused(m *Mirror, ended <-chan error) {
	r.t.Helper()
	select {
	case err := <-ended:
		h, ok := errors.AsType[*halt.Error](err)
		if !ok || !strings.Contains(h.What, "in use by another daemon") || !strings.Contains(h.What, r.m.cfg.ApplicationName) || !strings.Contains(h.Hint, "source.slot") {
			r.t.Errorf("the second daemon ended with %v, want a halt that names %s", err, r.m.cfg.ApplicationName)
		}
	case <-time.After(patience):
		r.t.Errorf("the second daemon goes on: %+v", m.Status())
	}
	if n := m.Status().Snapshots; n != 0 {
		r.t.Errorf("the second daemon took %d snapshots", n)
	}
}

// Of two daemons with one slot, name and host, the second halts, whether the
// first streams or copies its snapshot, and also where the second one's directory
// is a copy of the first one's.
func TestTwins(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'c' || g, 'r' FROM generate_series(1, 2000) g`)
	copied, goOn := make(chan struct{}, 1), make(chan struct{})
	r.hooks.copied = func() {
		select {
		case copied <- struct{}{}:
			<-goOn
		default:
		}
	}
	r.start()
	await(t, copied)
	early, earlyEnded := r.twin(t.TempDir())
	r.refused(early, earlyEnded)
	close(goOn)
	r.same("r")
	clone := t.TempDir()
	if err := os.CopyFS(clone, os.DirFS(r.dir)); err != nil {
		t.Fatal(err)
	}
	late, lateEnded := r.twin(clone)
	r.refused(late, lateEnded)
	r.same("r")
	if st := r.m.Status(); st.Snapshots != 1 || st.Reconnects != 0 {
		t.Errorf("the first daemon was disturbed: %+v", st)
	}
}

// A second daemon waits for one that is silent, and goes on when it is gone.
func TestTwinWaitsForASilentOne(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	conn, err := pgx.Connect(t.Context(), r.role)
	if err != nil {
		t.Fatal(err)
	}
	defer source.CloseConn(conn.PgConn())
	if _, err := conn.Exec(t.Context(), `SELECT pg_advisory_lock($1)`, source.LockKey(r.cfg.Slot)); err != nil {
		t.Fatal(err)
	}
	m, ended := r.twin(t.TempDir())
	seen := time.Now()
	envtest.Until(t, patience, func() error {
		if st := m.Status(); st.State != StateWaiting || !strings.Contains(st.LastError, fmt.Sprint("PID ", conn.PgConn().PID())) || time.Since(seen) < 3*time.Second {
			return fmt.Errorf("status is %+v, want it to wait", st)
		}
		return nil
	})
	source.CloseConn(conn.PgConn())
	envtest.Until(t, patience, func() error {
		if st := m.Status(); st.State != StateStreaming {
			return fmt.Errorf("status is %+v, want streaming", st)
		}
		return nil
	})
	select {
	case err := <-ended:
		t.Errorf("Run returned %v", err)
	default:
	}
}

// The mirror ends a lock holder that a killed run of its own left behind. The lock
// of a role that cannot be a mirror stops nothing. A lock that is lost is taken
// again.
func TestGuardIsTaken(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	r.open()
	lock := func(url, name string) {
		cfg, err := pgx.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		cfg.RuntimeParams["application_name"] = name
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		if _, err := conn.Exec(t.Context(), `SELECT pg_advisory_lock($1)`, source.LockKey(r.cfg.Slot)); err != nil {
			t.Fatal(err)
		}
	}
	lock(r.role, r.cfg.ForInstance(r.store.Instance()).ApplicationName)
	r.start()
	r.same()
	if n := r.Int(`SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE locktype = 'advisory' AND application_name = $1`, r.m.cfg.ApplicationName); n != 1 {
		t.Errorf("%d locks are held, want the mirror's", n)
	}
	guard := func() int64 {
		return r.Int(`SELECT coalesce(max(l.pid), 0) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE locktype = 'advisory' AND application_name = $1`, r.m.cfg.ApplicationName)
	}
	before := guard()
	r.Int(`SELECT count(pg_terminate_backend($1::int)) FROM (SELECT) s`, before)
	envtest.Until(t, patience, func() error {
		if now := guard(); now == 0 || now == before {
			return fmt.Errorf("the lock is held by PID %d, was %d", now, before)
		}
		return nil
	})
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	envtest.Until(t, patience, func() error {
		if n := r.Int(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); n != 0 {
			return fmt.Errorf("%d advisory locks are left behind", n)
		}
		return nil
	})

	r.Exec(`CREATE ROLE nobody_` + r.Name + ` LOGIN`)
	as, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	as.User = url.User("nobody_" + r.Name)
	lock(as.String(), "dinnerbell@elsewhere")
	r.start()
	r.same()
}
