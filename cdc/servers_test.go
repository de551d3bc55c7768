package cdc

import (
	"context"
	"path/filepath"

	"github.com/jackc/pgx/v5/pgxpool"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
)

// own moves the deployment to a server of its own, which can be killed.
func (r *deployment) own(settings map[string]string) *testenv.Postgres {
	r.t.Helper()
	server := envtest.StartPostgres(r.t, filepath.Join(envtest.Dir(r.t), "postgres"), settings)
	r.owns(server)
	r.moveTo(server)
	r.Exec(testenv.ContractTables)
	r.role = r.RoleURL("source.url")
	return server
}

// owns stops a server after the test, when the mirror has ended.
func (r *deployment) owns(server *testenv.Postgres) {
	r.t.Cleanup(func() {
		_ = r.halt()
		if err := server.Stop(); err != nil {
			r.t.Errorf("stop Postgres: %v", err)
		}
	})
}

// moveTo lets the test's own statements go to server.
func (r *deployment) moveTo(server *testenv.Postgres) {
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
func (r *deployment) kill(server *testenv.Postgres) {
	r.t.Helper()
	if err := server.Kill(); err != nil {
		r.t.Fatal(err)
	}
	r.startServer(server)
}

func (r *deployment) startServer(server *testenv.Postgres) {
	r.t.Helper()
	if err := server.Start(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	r.Pool.Reset()
}

// pair moves the deployment to a primary of its own with a physical standby. The
// mirror's address names both.
func (r *deployment) pair() (primary, standby *testenv.Postgres) {
	r.t.Helper()
	p := envtest.StartPair(r.t, 0, nil)
	r.owns(p.Standby)
	r.owns(p.Primary)
	r.moveTo(p.Primary)
	r.Exec(testenv.ContractTables)
	var err error
	if r.role, err = p.URL(r.RoleURL("source.url")); err != nil {
		r.t.Fatal(err)
	}
	return p.Primary, p.Standby
}

// version is server_version_num.
func (r *deployment) version() int64 {
	r.t.Helper()
	return r.Int(`SELECT current_setting('server_version_num')::int`)
}

// promote makes the standby the primary and sends the test's statements there.
func (r *deployment) promote(standby *testenv.Postgres) {
	r.t.Helper()
	r.moveTo(standby)
	if r.Int(`SELECT pg_promote()::int`) != 1 {
		r.t.Fatal("the standby was not promoted")
	}
}
