package cdc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/cdc/source"
	"dinnerbell/internal/halt"
)

// churn writes at random to a table with the given statements, over a number of
// connections, until stop. In each statement, $1 is a key and $2 a number.
func (r *deployment) churn(connections int, statements ...string) (stop func() int64) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	var group sync.WaitGroup
	var done atomic.Int64
	for i := range connections {
		group.Go(func() {
			conn, err := pgx.Connect(ctx, r.URL)
			if err != nil {
				r.t.Errorf("connect: %v", err)
				return
			}
			defer func() { _ = conn.Close(context.Background()) }()
			rnd := rand.New(rand.NewPCG(7, uint64(i)))
			tick := time.NewTicker(time.Millisecond) // enough to meet everything, and time for others
			defer tick.Stop()
			for ; ctx.Err() == nil; <-tick.C {
				sql := fmt.Sprintf(statements[rnd.IntN(len(statements))], rnd.IntN(300), rnd.IntN(40))
				// Not with ctx: a statement that is given up may commit later.
				_, err := conn.Exec(r.t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
				if err != nil && ctx.Err() == nil && source.SQLState(err) != "40P01" { // two of them, or one and an ALTER, may deadlock
					r.t.Errorf("%s: %v", sql, err)
					return
				}
				done.Add(1)
			}
		})
	}
	return func() int64 { cancel(); group.Wait(); return done.Load() }
}

// A table with a name that needs quotes, in a schema of its own, with a key of two
// columns that is not called id, and ids that are UUIDs: its owner adds, drops and
// renames other columns and changes the types of the needed ones, while others
// write.
func TestOddTableAlteredUnderLoad(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.cfg.Schema, r.cfg.Table = "Food Delivery", "Subscribers"
	r.cfg.KeyColumns, r.cfg.ClientColumn, r.cfg.RestaurantColumn = []string{"Region", "rowNo"}, "Client", "Restaurant"
	r.Exec(`CREATE SCHEMA "Food Delivery"; CREATE TABLE "Food Delivery"."Subscribers" ("Restaurant" uuid NOT NULL, "rowNo" int, note varchar,
		"Client" uuid NOT NULL, "Region" varchar(10), PRIMARY KEY ("Region", "rowNo"))`)
	const uuid = `('123e4567-e89b-12d3-a456-4266141740' || lpad((%[2]d)::text, 2, '0'))::uuid`
	const row = `"rowNo" = %[1]d AND "Region" = 'r' || %[1]d %% 3`
	load := []string{
		`INSERT INTO "Food Delivery"."Subscribers" ("Region", "rowNo", "Client", "Restaurant") VALUES ('r' || %[1]d %% 3, %[1]d, ` + uuid + `, ` + uuid + `) ON CONFLICT DO NOTHING`,
		`INSERT INTO "Food Delivery"."Subscribers" ("Region", "rowNo", "Client", "Restaurant") VALUES ('r' || %[1]d %% 3, %[1]d, ` + uuid + `, ` + uuid + `) ON CONFLICT DO NOTHING`,
		`UPDATE "Food Delivery"."Subscribers" SET "Client" = ` + uuid + ` WHERE ` + row,
		`UPDATE "Food Delivery"."Subscribers" SET "Region" = 'r' || (%[2]d + 1) %% 3 WHERE ` + row + ` AND NOT EXISTS (SELECT FROM "Food Delivery"."Subscribers" WHERE "rowNo" = %[1]d AND "Region" = 'r' || (%[2]d + 1) %% 3)`,
		`DELETE FROM "Food Delivery"."Subscribers" WHERE ` + row,
	}
	r.setup().start()
	r.barrier()
	stop := r.churn(2, load...)
	alter := func(sql string, snapshots int64) {
		t.Helper()
		r.Exec(`ALTER TABLE "Food Delivery"."Subscribers" ` + sql)
		r.await(fmt.Sprintf("%d snapshots after %s", snapshots, sql), func(st Status) bool { return st.Snapshots >= snapshots && st.State == StateStreaming })
		r.barrier()
	}
	alter(`ADD "Extra" jsonb DEFAULT '{}'`, 1)
	alter(`RENAME note TO "Remark"`, 1)
	alter(`DROP "Remark"`, 1)
	if st := r.m.Status(); st.Snapshots != 1 || st.Reconnects != 0 {
		t.Errorf("columns that are none of ours led to a snapshot: %+v", st)
	}
	alter(`ALTER "Region" TYPE text`, 2)
	alter(`ALTER "rowNo" TYPE bigint`, 3)
	t.Logf("%d writes meanwhile", stop())
	r.same()
	// The ids' own type; the writers of before would cast no more.
	alter(`ALTER "Client" TYPE text, ALTER "Restaurant" TYPE varchar(64)`, 4)
	r.Exec(`UPDATE "Food Delivery"."Subscribers" SET "Client" = 'a text' WHERE "rowNo" < 50`)
	r.same()
	r.Exec(`ALTER TABLE "Food Delivery"."Subscribers" DROP "Client"`)
	if h := r.awaitHalt(); !strings.Contains(h.What, `no column "Client"`) {
		t.Errorf("halt is %v, want the column named", h)
	}
}

// The replica identity is changed through all that carry the key, while others
// write, and the stream goes on; then to one that does not, which halts.
func TestReplicaIdentityChangedUnderLoad(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.Exec(`CREATE UNIQUE INDEX by_id ON subscribers_restaurants (id)`)
	look := r.looks()
	r.setup().start()
	r.barrier()
	stop := r.churn(2,
		`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES (%[1]d, 'c' || %[2]d, 'r' || %[2]d %% 3) ON CONFLICT DO NOTHING`,
		`UPDATE subscribers_restaurants SET restaurant_id = 'r' || %[2]d %% 3 WHERE id = %[1]d`,
		`UPDATE subscribers_restaurants SET id = id + 1000 * %[2]d WHERE id = %[1]d AND NOT EXISTS (SELECT FROM subscribers_restaurants WHERE id = %[1]d + 1000 * %[2]d)`,
		`DELETE FROM subscribers_restaurants WHERE id %% 300 = %[1]d`,
	)
	for _, identity := range []string{"FULL", "USING INDEX by_id", "DEFAULT"} {
		r.Exec(`ALTER TABLE subscribers_restaurants REPLICA IDENTITY ` + identity)
		r.barrier()
		look()
	}
	t.Logf("%d writes meanwhile", stop())
	r.same("r0", "r1", "r2")
	if st := r.m.Status(); st.Snapshots != 1 || st.Reconnects != 0 {
		t.Errorf("status is %+v, want the first snapshot and no reconnect", st)
	}
	r.Exec(`ALTER TABLE subscribers_restaurants REPLICA IDENTITY NOTHING`)
	if h := r.awaitHalt(); !strings.Contains(h.What, "REPLICA IDENTITY NOTHING") || !strings.Contains(h.Hint, "REPLICA IDENTITY DEFAULT") {
		t.Errorf("halt is %v, want the identity named", h)
	}
}

// A column that is dropped while the catalogs are read is still there in the
// reader's snapshot; the server's functions know better.
func TestColumnDroppedWhileCatalogsAreRead(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	conn, err := r.source().DialSQL(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer source.CloseConn(conn.PgConn())
	if _, err := conn.Exec(t.Context(), `BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class LIMIT 1`); err != nil {
		t.Fatal(err)
	}
	r.Exec(`ALTER TABLE subscribers_restaurants DROP client_id`)
	if _, err := r.source().Inspect(t.Context(), conn, true); err != nil {
		t.Errorf("inspect as of before the drop: %v", err)
	}
}

// A partition that is attached while the catalogs are read is in the tree that the
// server's function returns, and its keys are not in the snapshot of the reader.
// That is no reason to halt.
func TestPartitionAttachedWhileCatalogsAreRead(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.Exec(`DROP TABLE subscribers_restaurants;
		CREATE TABLE subscribers_restaurants (id int PRIMARY KEY, client_id text, restaurant_id text) PARTITION BY RANGE (id)`)
	r.setup()
	conn, err := r.source().DialSQL(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer source.CloseConn(conn.PgConn())
	if _, err := conn.Exec(t.Context(), `BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class LIMIT 1`); err != nil {
		t.Fatal(err)
	}
	r.Exec(`CREATE TABLE part0 (id int PRIMARY KEY, client_id text, restaurant_id text);
		ALTER TABLE subscribers_restaurants ATTACH PARTITION part0 FOR VALUES FROM (0) TO (100)`)
	if _, err := r.source().Inspect(t.Context(), conn, true); errors.As(err, new(*halt.Error)) {
		t.Errorf("inspect as of before: %v", err)
	}
	if _, err := conn.Exec(t.Context(), `COMMIT`); err != nil {
		t.Fatal(err)
	}
	if _, err := r.source().Inspect(t.Context(), conn, true); err != nil {
		t.Errorf("inspect as of now: %v", err)
	}
}

// Reading the catalogs takes no lock on the table and its partitions: it would
// wait behind DDL, and be in its way.
func TestCatalogsAreReadWithoutLocks(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.Exec(`DROP TABLE subscribers_restaurants;
		CREATE TABLE subscribers_restaurants (id int PRIMARY KEY, client_id text, restaurant_id text) PARTITION BY RANGE (id);
		CREATE TABLE part0 PARTITION OF subscribers_restaurants FOR VALUES FROM (0) TO (100)`)
	r.setup()
	conn, err := r.source().DialSQL(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer source.CloseConn(conn.PgConn())
	if _, err := conn.Exec(t.Context(), `BEGIN ISOLATION LEVEL REPEATABLE READ`); err != nil {
		t.Fatal(err)
	}
	if _, err := r.source().Inspect(t.Context(), conn, true); err != nil {
		t.Fatal(err)
	}
	if n := r.Int(`SELECT count(*) FROM pg_locks WHERE pid = $1 AND relation IN ('subscribers_restaurants'::regclass, 'part0'::regclass)`, conn.PgConn().PID()); n != 0 {
		t.Errorf("%d locks are held", n)
	}
}
