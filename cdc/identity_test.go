package cdc

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"dinnerbell/cdc/source"
	"dinnerbell/internal/testenv/envtest"
)

// looks makes the mirror that is started next count its looks at the catalogs. The
// function that it gives waits for one that begins after the call.
func (r *deployment) looks() (look func()) {
	var n atomic.Int64
	r.hooks.catalogChecked = func() { n.Add(1) }
	return func() {
		r.t.Helper()
		before := n.Load()
		envtest.Until(r.t, patience, func() error {
			wakeWaiter(r.m.catalogsChanged)
			if n.Load() < before+2 { // the first may have begun before
				return fmt.Errorf("no look yet: %+v", r.m.Status())
			}
			return nil
		})
	}
}

// Statements that change the catalogs, but neither values nor the published
// changes, lead to no snapshot and hold no join up.
func TestHarmlessCatalogChanges(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'r')`)
	look := r.looks()
	r.start()
	r.same("r")
	for _, sql := range []string{
		`GRANT SELECT (client_id) ON subscribers_restaurants TO PUBLIC`,
		`ALTER TABLE subscribers_restaurants ALTER client_id SET STATISTICS 500`,
		`ALTER TABLE subscribers_restaurants ALTER client_id SET DEFAULT 'x'`,
		`ALTER TABLE subscribers_restaurants ALTER client_id SET COMPRESSION pglz`,
		`ALTER TABLE subscribers_restaurants ALTER client_id SET (n_distinct = 1000)`,
		`ALTER TABLE subscribers_restaurants ALTER client_id DROP NOT NULL`,
		`ALTER TABLE subscribers_restaurants SET (fillfactor = 90)`,
		`COMMENT ON COLUMN subscribers_restaurants.client_id IS 'x'`,
		`CREATE TABLE other (id int PRIMARY KEY); ALTER PUBLICATION dinnerbell ADD TABLE other`,
		`ALTER TABLE subscribers_restaurants ADD note int DEFAULT 7; ALTER TABLE subscribers_restaurants ALTER note TYPE bigint`,
		`ALTER TABLE subscribers_restaurants ADD stamp timestamptz DEFAULT clock_timestamp()`,
		`VACUUM FULL subscribers_restaurants`,
		`CLUSTER subscribers_restaurants USING pk_id`,
		`TRUNCATE subscribers_restaurants`,
	} {
		r.Exec(sql)
		r.same("r")
		look()
		if st := r.m.Status(); st.Snapshots != 1 || st.Reconnects != 0 {
			t.Fatalf("after %s: %+v", sql, st)
		}
	}
}

const rangeParts = `DROP TABLE subscribers_restaurants;
	CREATE TABLE subscribers_restaurants (id int PRIMARY KEY, client_id text, restaurant_id text) PARTITION BY RANGE (id);
	CREATE TABLE part0 PARTITION OF subscribers_restaurants FOR VALUES FROM (0) TO (100);
	CREATE TABLE part1 PARTITION OF subscribers_restaurants FOR VALUES FROM (100) TO (200);
	CREATE TABLE part2 (other int, restaurant_id text, id int NOT NULL, client_id text);
	ALTER TABLE part2 DROP other, ADD PRIMARY KEY (id);
	INSERT INTO part2 (id, restaurant_id, client_id) SELECT g, 'r', 'new' || g FROM generate_series(200, 210) g;
	INSERT INTO subscribers_restaurants SELECT g, 'c' || g, 'r' FROM generate_series(90, 110) g;`

// Changes that the stream does not send are in the very next strict join, whether
// the mirror runs meanwhile or is stopped. The new rows are built beside the served
// ones: the slot stays.
func TestStrictJoinsSeeWhatIsNotSent(t *testing.T) {
	t.Parallel()
	const rows = `INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'c' || g, 'r' FROM generate_series(1, 10) g;`
	for _, c := range []struct{ name, before, sql string }{
		{"partition attached", rangeParts, `ALTER TABLE subscribers_restaurants ATTACH PARTITION part2 FOR VALUES FROM (200) TO (300)`},
		{"partition detached", rangeParts, `ALTER TABLE subscribers_restaurants DETACH PARTITION part0`},
		{"partition detached concurrently", rangeParts, `ALTER TABLE subscribers_restaurants DETACH PARTITION part0 CONCURRENTLY`},
		{"partition dropped", rangeParts, `DROP TABLE part0`},
		{"partition truncated", rangeParts, `TRUNCATE part1`},
		{"partition detached, written and attached again", rangeParts, `ALTER TABLE subscribers_restaurants DETACH PARTITION part0;
			DELETE FROM part0 WHERE id = (SELECT min(id) FROM part0); ALTER TABLE subscribers_restaurants ATTACH PARTITION part0 FOR VALUES FROM (0) TO (100)`},
		{"partition of a partition", rangeParts, `CREATE TABLE part3 PARTITION OF subscribers_restaurants FOR VALUES FROM (300) TO (500) PARTITION BY RANGE (id);
			CREATE TABLE part3a (id int PRIMARY KEY, client_id text, restaurant_id text); INSERT INTO part3a VALUES (301, 'deep', 'r');
			ALTER TABLE part3 ATTACH PARTITION part3a FOR VALUES FROM (300) TO (400)`},
		{"type with USING", rows, `ALTER TABLE subscribers_restaurants ALTER client_id TYPE varchar USING upper(client_id)`},
		{"type", rows, `ALTER TABLE subscribers_restaurants ALTER id TYPE bigint, ALTER client_id TYPE text`},
		{"column made again", rows, `ALTER TABLE subscribers_restaurants DROP client_id, ADD client_id varchar NOT NULL DEFAULT 'anew'`},
		{"enum label", `CREATE TYPE district AS ENUM ('north', 'south'); ALTER TABLE subscribers_restaurants ALTER client_id TYPE district USING 'north';
			INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('south', 'r');`, `ALTER TYPE district RENAME VALUE 'south' TO 'centre'`},
		{"enum label below domains", `CREATE TYPE district AS ENUM ('north', 'south'); CREATE DOMAIN inner_district AS district; CREATE DOMAIN outer_district AS inner_district;
			ALTER TABLE subscribers_restaurants ALTER client_id TYPE outer_district USING 'north';
			INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('south', 'r');`, `ALTER TYPE district RENAME VALUE 'south' TO 'centre'`},
		{"table out of the publication and back", rows, `ALTER PUBLICATION dinnerbell DROP TABLE subscribers_restaurants;
			INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('unseen', 'r'); ALTER PUBLICATION dinnerbell ADD TABLE subscribers_restaurants`},
		{"fewer actions and back", rows, `ALTER PUBLICATION dinnerbell SET (publish = 'insert');
			DELETE FROM subscribers_restaurants WHERE client_id = 'c1'; ALTER PUBLICATION dinnerbell SET (publish = 'insert, update, delete, truncate')`},
		{"schema out of the publication and back", rows + `CREATE PUBLICATION dinnerbell FOR TABLES IN SCHEMA public`, `ALTER PUBLICATION dinnerbell DROP TABLES IN SCHEMA public;
			INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('unseen', 'r'); ALTER PUBLICATION dinnerbell ADD TABLES IN SCHEMA public`},
		{"parent out of the publication and back", `DROP TABLE subscribers_restaurants; CREATE TABLE parent (id int PRIMARY KEY, client_id text, restaurant_id text) PARTITION BY RANGE (id);
			CREATE TABLE subscribers_restaurants PARTITION OF parent FOR VALUES FROM (0) TO (100);
			INSERT INTO parent VALUES (1, 'a', 'r'); CREATE PUBLICATION dinnerbell FOR TABLE parent`,
			`ALTER PUBLICATION dinnerbell DROP TABLE parent; INSERT INTO parent VALUES (2, 'unseen', 'r'); ALTER PUBLICATION dinnerbell ADD TABLE parent`},
		{"published through a parent, which is left and joined again", `DROP TABLE subscribers_restaurants; CREATE TABLE parent (id int PRIMARY KEY, client_id text, restaurant_id text) PARTITION BY RANGE (id);
			CREATE TABLE subscribers_restaurants PARTITION OF parent FOR VALUES FROM (0) TO (100);
			INSERT INTO parent VALUES (1, 'a', 'r'); CREATE PUBLICATION dinnerbell FOR TABLE parent`,
			`ALTER TABLE parent DETACH PARTITION subscribers_restaurants; INSERT INTO subscribers_restaurants VALUES (2, 'unseen', 'r');
			ALTER TABLE parent ATTACH PARTITION subscribers_restaurants FOR VALUES FROM (0) TO (100)`},
	} {
		for _, running := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, running %t", c.name, running), func(t *testing.T) {
				t.Parallel()
				r := newDeployment(t)
				if strings.Contains(c.before, "IN SCHEMA") && r.version() < source.SchemasVersion {
					t.Skip("this server cannot do that")
				}
				r.Exec(c.before)
				if !strings.Contains(c.before, "PUBLICATION") {
					r.setup()
				}
				var made atomic.Int32
				r.hooks.slotMade = func() { made.Add(1) }
				r.start()
				r.same("r")
				if !running {
					_ = r.halt()
				}
				if strings.HasSuffix(c.sql, "CONCURRENTLY") {
					r.Exec(c.sql) // alone: it cannot run in a transaction
				} else {
					r.Exec("BEGIN; " + c.sql + "; COMMIT")
				}
				if !running {
					r.start()
				}
				r.same("r")
				slotStays := r.version() >= source.SchemasVersion // see noSchemas
				if slotStays && made.Load() != 1 {
					t.Errorf("the slot was made %d times, want once", made.Load())
				}
				r.Exec(`DELETE FROM subscribers_restaurants WHERE id % 2 = 0`)
				r.same("r")
				if st := r.m.Status(); slotStays && running && (st.Snapshots != 2 || st.Reconnects != 0) {
					t.Errorf("status is %+v, want one rebuild and no reconnect", st)
				}
			})
		}
	}
}

// Writes to a table while it was in a schema that is not published were not sent,
// and a walsender that has met a partition there sends nothing of it later.
func TestTableThatWasInAnotherSchema(t *testing.T) {
	t.Parallel()
	for _, before := range []string{`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES (95, 'c', 'r'), (96, 'd', 'r');`, rangeParts} {
		t.Run(fmt.Sprintf("partitions %t", before == rangeParts), func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t)
			r.hooks.healing = patience // for a moment there is no such table
			if r.version() < source.SchemasVersion {
				t.Skip("this server publishes no schemas")
			}
			r.Exec(before + `CREATE SCHEMA elsewhere; CREATE PUBLICATION dinnerbell FOR TABLES IN SCHEMA public WITH (publish_via_partition_root = true)`)
			if before == rangeParts { // by the table's schema alone
				r.Exec(`CREATE SCHEMA parts; ALTER TABLE part0 SET SCHEMA parts; ALTER TABLE part1 SET SCHEMA parts`)
			}
			r.start()
			r.same("r")
			r.Exec(`ALTER TABLE subscribers_restaurants SET SCHEMA elsewhere`)
			r.Exec(`DELETE FROM elsewhere.subscribers_restaurants WHERE id = 95`)
			r.Exec(`ALTER TABLE elsewhere.subscribers_restaurants SET SCHEMA public`)
			r.same("r")
			r.Exec(`DELETE FROM subscribers_restaurants WHERE id = 96`)
			r.same("r")
			snapshots := r.m.Status().Snapshots
			r.Exec(`ALTER TABLE subscribers_restaurants OWNER TO pg_monitor`)
			r.Exec(`DELETE FROM subscribers_restaurants WHERE client_id = 'c'`)
			r.same("r")
			if n := r.m.Status().Snapshots; n != snapshots {
				t.Errorf("another owner led to a snapshot")
			}
		})
	}
}

// Under source.on_lost: halt no rebuild begins by itself, beside the rows either.
func TestOutdatedRowsHaltIfAskedTo(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.cfg.HaltOnLost = true
	r.Exec(rangeParts)
	r.setup().start()
	r.same("r")
	r.Exec(`TRUNCATE part1`)
	wakeWaiter(r.m.catalogsChanged)
	if h := r.awaitHalt(); !strings.Contains(h.What, "partitions were truncated") || h.Hint != "dinnerbell rebuild --offline" {
		t.Errorf("halt is %v", h)
	}
}

// A table or a partition that somebody locks, as VACUUM FULL and CLUSTER do, holds
// up neither strict joins nor looks at the catalogs.
func TestTableLockedExclusively(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ lock, table string }{{"subscribers_restaurants", ""}, {"part1", rangeParts}, {"subscribers_restaurants", rangeParts}} {
		t.Run(fmt.Sprintf("%s, partitions %t", c.lock, c.table != ""), func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t)
			if c.table != "" {
				r.Exec(c.table)
			}
			look := r.looks()
			r.setup().start()
			r.same("r")
			conn, err := pgx.Connect(t.Context(), r.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close(t.Context()) }()
			if _, err := conn.Exec(t.Context(), `BEGIN; LOCK TABLE `+c.lock+` IN ACCESS EXCLUSIVE MODE`); err != nil {
				t.Fatal(err)
			}
			r.barrier()
			look()
			r.barrier()
			if st := r.m.Status(); st.Snapshots != 1 || st.Reconnects != 0 {
				t.Errorf("status is %+v, want no reconnect", st)
			}
			if _, err := conn.Exec(t.Context(), `COMMIT`); err != nil {
				t.Fatal(err)
			}
			r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES (111, 'a', 'r')`)
			r.same("r")
		})
	}
}

// Where the server has no slot left for a second stream, the rows are replaced by
// a snapshot in their place.
func TestOutdatedRowsWithoutASecondSlot(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.own(map[string]string{"max_replication_slots": "1"})
	r.Exec(rangeParts + `GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC`)
	r.setup().start()
	r.same("r")
	r.Exec(`ALTER TABLE subscribers_restaurants ATTACH PARTITION part2 FOR VALUES FROM (200) TO (300)`)
	r.same("r")
}
