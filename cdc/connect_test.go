package cdc

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dinnerbell/cdc/replication"
	"dinnerbell/cdc/source"
	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
)

// Pauses between connects grow to a limit, and two daemons that lost the same
// server do not come back in step.
func TestPauses(t *testing.T) {
	t.Parallel()
	one, other := newBackoff(), newBackoff()
	same := 0
	for i := range 30 {
		a, b := one.NextBackOff(), other.NextBackOff()
		if a == b {
			same++
		}
		if low, high := firstPause/2, 2*maxPause; a < low || a > high || i == 0 && a > 2*firstPause || i > 20 && a < maxPause/2 {
			t.Errorf("pause %d is %s", i, a)
		}
	}
	if same > 3 {
		t.Errorf("%d of 30 pauses are the same: no jitter", same)
	}
}

// The password changes while the daemon runs, and the URL function returns the new
// one a little later: every connection is made with it, replication too, without a
// restart.
func TestPasswordRotated(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	hba := filepath.Join(envtest.Dir(t), "pg_hba.conf")
	rules := "host all postgres 127.0.0.1/32 trust\nhost all,replication all 127.0.0.1/32 scram-sha-256\n"
	if err := os.WriteFile(hba, []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	r.own(map[string]string{"hba_file": hba})
	role := "role_" + r.Name
	var known atomic.Pointer[string]
	tell := func(password string) { known.Store(&password) }
	r.cfg.URL = func() (string, error) {
		u, err := url.Parse(r.role)
		if err != nil {
			return "", err
		}
		u.User = url.UserPassword(role, *known.Load())
		return u.String(), nil
	}
	r.Exec(`ALTER ROLE ` + role + ` PASSWORD 'first'`)
	tell("first")
	r.setup().start()
	r.write(80, 1, 20)()
	r.same(allRestaurants...)

	r.Exec(`ALTER ROLE ` + role + ` PASSWORD 'second'`)
	r.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1`, role)
	r.await("refusal", func(st Status) bool { return strings.Contains(st.LastError, "password authentication failed") })
	if text := r.m.Status().LastError; strings.Contains(text, "first") {
		t.Errorf("the error shows the password: %s", text)
	}
	tell("second")
	r.write(81, 1, 20)()
	r.same(allRestaurants...)
	if st := r.m.Status(); st.Snapshots != 1 {
		t.Errorf("status is %+v, want no snapshot for a new password", st)
	}
}

// The halt names a pooler in transaction mode, whether the pooler refuses the
// mirror's settings or is configured to swallow them.
func TestPgBouncer(t *testing.T) {
	t.Parallel()
	swallow := "extra_float_digits, replication"
	for _, s := range source.SessionSettings {
		if s.Name != "client_encoding" {
			swallow += ", " + s.Name
		}
	}
	for _, c := range []struct {
		name     string
		settings map[string]string
	}{
		{"as installed", map[string]string{"pool_mode": "transaction"}},
		{"told to swallow settings", map[string]string{"pool_mode": "transaction", "ignore_startup_parameters": swallow}},
		{"session mode", map[string]string{"pool_mode": "session", "ignore_startup_parameters": swallow}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t).setup()
			direct, err := url.Parse(r.role)
			if err != nil {
				t.Fatal(err)
			}
			var port int
			if _, err := fmt.Sscan(direct.Port(), &port); err != nil {
				t.Fatal(err)
			}
			pooler, err := testenv.StartPgBouncer(t.Context(), testenv.PgBouncerOptions{
				Dir: envtest.Dir(t), Server: port, User: "role_" + r.Name, Settings: c.settings,
			})
			if errors.Is(err, testenv.ErrNoPgBouncer) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := pooler.Stop(); err != nil {
					t.Error(err)
				}
			})
			through := strings.Replace(r.role, direct.Host, fmt.Sprintf("127.0.0.1:%d", pooler.Port()), 1)
			r.cfg.URL = func() (string, error) { return through, nil }
			r.start()
			if h := r.awaitHalt(); !strings.Contains(h.What, "connection pooler") || !strings.Contains(h.Hint, "source.url") {
				t.Errorf("halt is %q, hint %q; want the pooler named", h.What, h.Hint)
			}
		})
	}
}

// The mirror waits for a slot in other hands, names the holder and leaves it alone,
// even if it is another dinnerbell; it ends a walsender that a killed run of its
// own left behind.
func TestSlotActive(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().start()
	r.barrier()
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	r.awaitFree()
	hold := func(name string) (release func(), pid int64) {
		cfg := r.cfg.Config
		cfg.ApplicationName = name
		db, err := source.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := db.DialReplication(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := replication.Start(t.Context(), conn, cfg.Slot, cfg.QuotedPublication(), r.store.DurableLSN()); err != nil {
			t.Fatal(err)
		}
		return func() { source.CloseConn(conn) }, int64(conn.PID())
	}
	active := func() int64 {
		return r.Int(`SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots WHERE slot_name = $1`, r.cfg.Slot)
	}

	release, pid := hold(r.cfg.ApplicationName + "-too")
	r.start()
	named := fmt.Sprintf("is active for PID %d (application_name %q, role role_%s", pid, r.cfg.ApplicationName+"-too", r.Name)
	r.await("waiting", func(st Status) bool { return st.Reconnects >= 3 && strings.Contains(st.LastError, named) })
	if now := active(); now != pid {
		t.Errorf("the slot is held by PID %d, was %d: a foreign walsender was ended", now, pid)
	}
	release()
	r.same()
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	r.awaitFree()

	release, pid = hold(r.cfg.ForInstance(r.store.Instance()).ApplicationName) // never answers, as after kill -9
	defer release()
	began := time.Now()
	r.start()
	r.same()
	if now := active(); now == pid || now == 0 {
		t.Errorf("after %s the slot is held by PID %d, our own leftover was %d", time.Since(began), now, pid)
	}
}

// Before a server has accepted the connection its messages are bounded; from then
// on a row may be as large as Postgres has it.
func TestLargeMessagesOnceConnected(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	const text = "SELECT repeat('x', 1048576)"
	conn, err := r.source().DialSQL(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer source.CloseConn(conn.PgConn())
	var got string
	if err := conn.QueryRow(t.Context(), text).Scan(&got); err != nil || len(got) != 1<<20 {
		t.Errorf("%d bytes over SQL: %v", len(got), err)
	}
	repl, err := r.source().DialReplication(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer source.CloseConn(repl)
	results, err := repl.Exec(t.Context(), text).ReadAll()
	if err != nil || len(results[0].Rows[0][0]) != 1<<20 {
		t.Errorf("over replication: %v", err)
	}
}
