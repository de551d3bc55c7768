package cdc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"dinnerbell/cdc/source"
	"dinnerbell/cdc/tablecopy"
	"dinnerbell/internal/testenv/envtest"
)

// inPieces lets a small table be copied as a large one.
func (r *deployment) inPieces(connections int) *deployment {
	r.cfg.copyLimits = tablecopy.Limits{ParallelBytes: 1, RangeBytes: 1, Connections: connections} // a range is a block
	return r
}

// A table that is copied over several connections, while it is being written,
// comes out equal; partitions and an empty table too.
func TestCopyOverSeveralConnections(t *testing.T) {
	t.Parallel()
	const rows = `INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) SELECT g, 'client ' || g % 997, 'restaurant ' || g % 6 FROM generate_series(1, 20000) g`
	const partitioned = `DROP TABLE subscribers_restaurants;
		CREATE TABLE subscribers_restaurants (id serial PRIMARY KEY, client_id text, restaurant_id text) PARTITION BY RANGE (id);
		CREATE TABLE "Low" PARTITION OF subscribers_restaurants FOR VALUES FROM (MINVALUE) TO (8000);
		CREATE TABLE none PARTITION OF subscribers_restaurants FOR VALUES FROM (8000) TO (8000 + 1);
		CREATE TABLE high PARTITION OF subscribers_restaurants DEFAULT PARTITION BY HASH (id);
		CREATE TABLE high0 PARTITION OF high FOR VALUES WITH (MODULUS 2, REMAINDER 0);
		CREATE TABLE high1 PARTITION OF high FOR VALUES WITH (MODULUS 2, REMAINDER 1);`
	for _, c := range []struct {
		name, sql string
		parts     int // at least
	}{
		{"one table", rows, 100},
		{"partitions", partitioned + rows, 100},
		{"no rows", ``, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t).inPieces(3)
			if c.sql != "" {
				r.Exec(c.sql)
				r.Exec(`SELECT setval('subscribers_restaurants_id_seq', 20000)`)
			}
			r.setup()
			conn, err := r.source().DialSQL(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer source.CloseConn(conn.PgConn())
			cat, err := r.source().Inspect(t.Context(), conn, true)
			if err != nil {
				t.Fatal(err)
			}
			if parts, err := tablecopy.PlanParts(t.Context(), conn, r.source().Config(), cat, r.cfg.copyLimits); err != nil || len(parts) < c.parts || parts[0].Whole != (c.parts == 1) {
				t.Errorf("%d parts, error %v; want at least %d", len(parts), err, c.parts)
			}
			wait := r.write(21, 2, 60)
			r.start()
			wait()
			r.same(allRestaurants...)
		})
	}
}

// A role that may read the root alone cannot be given its partitions.
func TestCopyInOnePieceWithoutRightsOnPartitions(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).inPieces(2)
	r.Exec(`DROP TABLE subscribers_restaurants;
		CREATE TABLE subscribers_restaurants (id int PRIMARY KEY, client_id text, restaurant_id text) PARTITION BY HASH (id);
		CREATE TABLE part0 PARTITION OF subscribers_restaurants FOR VALUES WITH (MODULUS 1, REMAINDER 0);
		INSERT INTO subscribers_restaurants SELECT g, 'c' || g, 'r' FROM generate_series(1, 1000) g`)
	r.Exec(`REVOKE ALL ON part0 FROM PUBLIC, role_` + r.Name)
	r.setup().start()
	r.same("r")
}

// The connection of a long copy is lost: the error names the progress of the copy,
// the old rows are still served, and the next attempt begins anew.
func TestCopyLostInTheMiddle(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).inPieces(2).setup().start()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('served', 'r')`)
	r.same("r")
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || g, 'r' FROM generate_series(1, 20000) g; ANALYZE subscribers_restaurants`)
	r.awaitFree()
	r.Exec(`SELECT pg_drop_replication_slot($1)`, r.cfg.Slot)
	var batches atomic.Int64
	var reported, served string
	r.hooks.copied = func() {
		if batches.Add(1) != 10 {
			return
		}
		served = fmt.Sprint(r.clients("r"))
		r.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND query LIKE 'COPY%'`, r.m.cfg.ApplicationName)
	}
	r.start()
	r.await("lost copy", func(st Status) bool { reported = st.LastError; return reported != "" })
	r.same("r")
	if !strings.Contains(reported, "of about 20001 rows") || !strings.Contains(reported, "copy ") {
		t.Errorf("the error is %q, want how far the copy was", reported)
	}
	if served != "[served]" {
		t.Errorf("in the middle of the copy %s was served, want what was before", served)
	}
	if st := r.m.Status(); st.Snapshots != 2 {
		t.Errorf("status is %+v, want a second snapshot", st)
	}
}

// A TRUNCATE that waits for the copy does not keep its further connections.
func TestCopyBesideWaitingTruncate(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).inPieces(3).setup()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || g, 'r' FROM generate_series(1, 5000) g`)
	conn, err := pgx.Connect(t.Context(), r.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	truncated := make(chan error, 1)
	var once sync.Once
	r.hooks.locked = func() { // the copy's first connection has its lock
		once.Do(func() {
			go func() {
				_, err := conn.Exec(t.Context(), `TRUNCATE subscribers_restaurants`)
				truncated <- err
			}()
			envtest.Until(t, patience, func() error {
				if r.Int(`SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock' AND relation = 'subscribers_restaurants'::regclass
					AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 0 {
					return errors.New("the TRUNCATE does not wait yet")
				}
				return nil
			})
		})
	}
	r.start()
	if err := <-truncated; err != nil {
		t.Fatal(err)
	}
	r.same("r")
	if n := r.store.Subscriptions(); n != 0 {
		t.Errorf("%d subscriptions after the TRUNCATE", n)
	}
}

// Further connections are done without if the server does not give them.
func TestCopyWithoutFurtherConnections(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).inPieces(4).setup()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || g, 'r' FROM generate_series(1, 5000) g`)
	r.open()
	direct := r.role
	var calls, refused atomic.Int64
	r.cfg.URL = func() (string, error) {
		if calls.Add(1) > 4 { // catalogs, the slot's lock, the slot and the copy's first
			refused.Add(1)
			return "", errors.New("too many connections")
		}
		return direct, nil
	}
	if err := New(r.cfg, r.store).Rebuild(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if n := r.store.Subscriptions(); n != 5000 || refused.Load() != 3 {
		t.Errorf("%d subscriptions with %d connections refused, want 5000 and 3", n, refused.Load())
	}
}
