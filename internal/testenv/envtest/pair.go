package envtest

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"testing"

	"dinnerbell/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// failoverVersion is the first version that can synchronize logical slots to a
// standby.
const failoverVersion = 17

// Pair is a primary and its physical standby. If the version has failover
// slots, both are configured for them as in docs/postgres.md.
type Pair struct{ Primary, Standby *testenv.Postgres }

// StartPair starts both with the same settings; the caller stops them. version
// is a major version; 0 is the version of the shared server.
func StartPair(t testing.TB, version int, settings map[string]string) Pair {
	t.Helper()
	const slot = "standby"
	dir := Dir(t)
	p := Pair{Primary: StartPostgresVersion(t, version, filepath.Join(dir, "primary"), settings)}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	conn, err := pgx.Connect(t.Context(), p.Primary.URL(""))
	must(err)
	defer func() { _ = conn.Close(context.Background()) }()
	var major int
	must(conn.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::int / 10000 FROM pg_create_physical_replication_slot($1)`, slot).Scan(&major))
	// The standby has no standby to wait for.
	own := map[string]string{"synchronous_standby_names": ""}
	if major >= failoverVersion {
		own["sync_replication_slots"], own["synchronized_standby_slots"] = "on", ""
		_, err = conn.Exec(t.Context(), `ALTER SYSTEM SET synchronized_standby_slots = 'standby'`)
		must(err)
	}
	must(conn.Close(t.Context()))
	must(p.Primary.Stop())
	p.Standby, err = p.Primary.Standby(t.Context(), filepath.Join(dir, "standby"), slot, own)
	must(err)
	must(p.Primary.Start(context.Background()))
	must(p.Standby.Start(context.Background()))
	return p
}

// URL returns a connection string with both hosts; a client finds the host that
// accepts writes.
func (p Pair) URL(of string) (string, error) {
	u, err := url.Parse(of)
	if err != nil {
		return "", err
	}
	u.Host = fmt.Sprintf("127.0.0.1:%d,127.0.0.1:%d", p.Primary.Port(), p.Standby.Port())
	u.RawQuery = "sslmode=disable&target_session_attrs=read-write"
	return u.String(), nil
}
