package cdc

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"

	"github.com/jackc/pgx/v5/pgxpool"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
)

// own moves the rig to a server of its own, which can be killed.
func (r *rig) own(settings map[string]string) *testenv.Postgres {
	r.t.Helper()
	server := envtest.StartPostgres(r.t, filepath.Join(envtest.Dir(r.t), "postgres"), settings)
	r.owns(server)
	r.moveTo(server)
	r.Exec(testenv.ContractTables)
	r.role = r.RoleURL("source.url")
	return server
}

// owns stops a server after the test, when the mirror has ended.
func (r *rig) owns(server *testenv.Postgres) {
	r.t.Cleanup(func() {
		_ = r.halt()
		if err := server.Stop(); err != nil {
			r.t.Errorf("stop Postgres: %v", err)
		}
	})
}

// moveTo lets the test's own statements go to server.
func (r *rig) moveTo(server *testenv.Postgres) {
	r.t.Helper()
	r.URL = server.URL("postgres")
	pool, err := pgxpool.New(r.t.Context(), r.URL)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(pool.Close)
	r.Pool = pool
}

// kill crashes a server and starts it again.
func (r *rig) kill(server *testenv.Postgres) {
	r.t.Helper()
	if err := server.Kill(); err != nil {
		r.t.Fatal(err)
	}
	r.startServer(server)
}

func (r *rig) startServer(server *testenv.Postgres) {
	r.t.Helper()
	if err := server.Start(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	r.Pool.Reset()
}

// pair moves the rig to a primary of its own with a physical standby. The
// mirror's address names both. A server that can have failover slots has them.
func (r *rig) pair() (primary, standby *testenv.Postgres) {
	r.t.Helper()
	primary = r.own(nil)
	const slot = "standby"
	r.Exec(`SELECT pg_create_physical_replication_slot($1)`, slot)
	settings := map[string]string{}
	if r.version() >= failoverVersion {
		// The standby has no standby of its own to wait for.
		settings["sync_replication_slots"], settings["synchronized_standby_slots"] = "on", ""
		r.Exec(`ALTER SYSTEM SET synchronized_standby_slots = 'standby'`)
	}
	if err := primary.Stop(); err != nil {
		r.t.Fatal(err)
	}
	standby, err := primary.Standby(r.t.Context(), filepath.Join(envtest.Dir(r.t), "standby"), slot, settings)
	if err != nil {
		r.t.Fatal(err)
	}
	r.owns(standby)
	r.startServer(primary)
	r.startServer(standby)
	as, err := url.Parse(r.role)
	if err != nil {
		r.t.Fatal(err)
	}
	as.Host = fmt.Sprintf("127.0.0.1:%d,127.0.0.1:%d", primary.Port(), standby.Port())
	as.RawQuery = "sslmode=disable&target_session_attrs=read-write"
	r.role = as.String()
	return primary, standby
}

// version is server_version_num.
func (r *rig) version() int64 {
	r.t.Helper()
	return r.Int(`SELECT current_setting('server_version_num')::int`)
}

// promote makes the standby the primary and sends the test's statements there.
func (r *rig) promote(standby *testenv.Postgres) {
	r.t.Helper()
	r.moveTo(standby)
	if r.Int(`SELECT pg_promote()::int`) != 1 {
		r.t.Fatal("the standby was not promoted")
	}
}
