package envtest

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dinnerbell/internal/testenv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// fast switches off the settings that matter only for a crash of the machine. A
// killed Postgres loses no write, since the kernel has them all.
var fast = map[string]string{"fsync": "off", "full_page_writes": "off"}

// DB is a database of one test on the shared server.
type DB struct {
	URL  string
	Name string
	Pool *pgxpool.Pool

	t testing.TB
}

// Database creates a database with testenv.ContractTables on the server that
// all tests of the package share. After the test, the database is dropped with
// its replication slots and connections.
func Database(t testing.TB) *DB {
	t.Helper()
	server, name := servers.nextDatabase(t)
	return openDatabase(t, server, name, "CREATE DATABASE "+name+servers.templateClause)
}

// DatabaseOn is Database on a server of the test, which is stopped after the
// database was dropped.
func DatabaseOn(t testing.TB, server *testenv.Postgres) *DB {
	t.Helper()
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Errorf("stop postgres: %v", err)
		}
	})
	return NamedDatabase(t, server, "test")
}

// NamedDatabase is Database on a server that the test stops itself, later.
func NamedDatabase(t testing.TB, server *testenv.Postgres, name string) *DB {
	t.Helper()
	db := openDatabase(t, server, name, "CREATE DATABASE "+name)
	db.Exec(testenv.ContractTables)
	return db
}

// openDatabase creates a database by the statement create and drops it after the test.
func openDatabase(t testing.TB, server *testenv.Postgres, name, create string) *DB {
	t.Helper()
	db := &DB{Name: name, URL: server.URL(name), t: t}
	execAdmin(t, server.URL(""), create)
	pool, err := pgxpool.New(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	db.Pool = pool
	t.Cleanup(func() {
		pool.Close()
		dropDatabase(t, server.URL(""), name)
	})
	return db
}

// nextDatabase starts the shared server if necessary and picks a name.
func (s *sharedServers) nextDatabase(t testing.TB) (*testenv.Postgres, string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.postgres == nil {
		dir, err := s.folderLocked()
		if err != nil {
			t.Fatal(err)
		}
		s.postgres = StartPostgres(t, filepath.Join(dir, "postgres"), nil)
		printVersion(t, s.postgres)
		s.templateClause = createTemplate(t, s.postgres)
	}
	s.databases++
	return s.postgres, fmt.Sprintf("test_%d", s.databases)
}

// createTemplate creates a database with testenv.ContractTables and returns the end of
// the statement CREATE DATABASE that copies it. The strategy file_copy costs half the time
// of the default: it logs no page, which each walsender of the server would have to read,
// and copies the file pg_internal.init, which the first connection to a database has to
// write otherwise. Postgres 14 has no other strategy, and no word for it.
func createTemplate(t testing.TB, server *testenv.Postgres) string {
	t.Helper()
	const name = "contract_tables"
	execAdmin(t, server.URL(""), "CREATE DATABASE "+name)
	execAdmin(t, server.URL(name), testenv.ContractTables)
	conn, err := pgx.Connect(t.Context(), server.URL(name)) // writes pg_internal.init
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	var version int
	if err := conn.QueryRow(t.Context(), "SELECT current_setting('server_version_num')::int").Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version < 150_000 {
		return " TEMPLATE " + name
	}
	return " TEMPLATE " + name + " STRATEGY file_copy"
}

// printVersion prints the server's own version text if $POSTGRES_VERSION asks
// for a version.
func printVersion(t testing.TB, server *testenv.Postgres) {
	t.Helper()
	if os.Getenv("POSTGRES_VERSION") == "" {
		return
	}
	conn, err := pgx.Connect(t.Context(), server.URL(""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	var version string
	if err := conn.QueryRow(t.Context(), "SELECT version()").Scan(&version); err != nil {
		t.Fatal(err)
	}
	fmt.Println(version)
}

// StartPostgres starts a server in dir (see Dir) for tests that kill it; the
// caller stops it. It runs without fsync, like the shared server, unless
// settings override that.
func StartPostgres(t testing.TB, dir string, settings map[string]string) *testenv.Postgres {
	t.Helper()
	return StartPostgresVersion(t, 0, dir, settings)
}

// StartPostgresVersion is StartPostgres with a major version; 0 is the version
// of the shared server.
func StartPostgresVersion(t testing.TB, version int, dir string, settings map[string]string) *testenv.Postgres {
	t.Helper()
	all := maps.Clone(fast)
	maps.Copy(all, settings)
	server, err := testenv.StartPostgres(context.Background(), testenv.PostgresOptions{
		Dir: dir, BinDir: postgresBin(t, version), Settings: all,
	})
	if err != nil {
		t.Fatal(err)
	}
	return server
}

// postgresBin finds the programs or downloads them into the repository's cache.
func postgresBin(t testing.TB, version int) string {
	t.Helper()
	cache := filepath.Join(Root(t), ".cache")
	var bin string
	var err error
	if version == 0 {
		bin, err = testenv.FindPostgres(t.Context(), cache)
	} else {
		bin, err = testenv.FindPostgresVersion(t.Context(), version, cache)
	}
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// Exec runs one statement with arguments, or several without, and fails the
// test on an error.
func (db *DB) Exec(sql string, args ...any) {
	db.t.Helper()
	if _, err := db.Pool.Exec(db.t.Context(), sql, args...); err != nil {
		db.t.Fatalf("%s: %v", sql, err)
	}
}

// Int runs a query for one number.
func (db *DB) Int(sql string, args ...any) int64 {
	db.t.Helper()
	var n int64
	if err := db.Pool.QueryRow(db.t.Context(), sql, args...).Scan(&n); err != nil {
		db.t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// execAdmin runs one statement outside the tests' databases.
func execAdmin(t testing.TB, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// dropDatabase ends the walsenders of the database, drops its slots, which
// would prevent the drop, and drops the database. The test's context has ended.
func dropDatabase(t testing.TB, url, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Errorf("drop %s: %v", name, err)
		return
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
		WHERE database = $1 AND active_pid IS NOT NULL`, name); err != nil {
		t.Errorf("end walsenders of %s: %v", name, err)
	}
	Until(t, 10*time.Second, func() error {
		_, err := conn.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1`, name)
		return err
	})
	if _, err := conn.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
		t.Errorf("drop %s: %v", name, err)
	}
}

// On returns a DB for a database that the test has made.
func On(t testing.TB, url string, pool *pgxpool.Pool) *DB {
	t.Helper()
	return &DB{URL: url, Name: "postgres", Pool: pool, t: t}
}
