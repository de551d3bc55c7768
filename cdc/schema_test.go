package cdc

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"dinnerbell/cdc/source"
	"dinnerbell/internal/halt"
)

// Keys of several columns, whatever their types, come out the same by snapshot
// and by stream; the subscription itself may be the key.
func TestCompositeKey(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, table string
		key         []string
		insert      string // of rows $1 to $2
		changes     []string
	}{
		{
			"id and time", `id int8, at timestamptz, client_id text NOT NULL, restaurant_id text NOT NULL, PRIMARY KEY (at, id)`,
			[]string{"id", "at"},
			`INSERT INTO subscribers_restaurants SELECT g, timestamptz '2024-07-01 12:00+02' + g * interval '1 hour', 'c' || g, 'r' || g % 2 FROM generate_series($1::int, $2::int) g`,
			[]string{
				`UPDATE subscribers_restaurants SET client_id = 'changed' WHERE id < 4`,
				`UPDATE subscribers_restaurants SET at = at + interval '1 day', client_id = 'moved' WHERE id = 5`,
				`DELETE FROM subscribers_restaurants WHERE id IN (6, 11)`,
			},
		},
		{
			"the subscription", `note text, client_id varchar, restaurant_id uuid, PRIMARY KEY (restaurant_id, client_id)`,
			[]string{"client_id", "restaurant_id"},
			`INSERT INTO subscribers_restaurants SELECT '', 'a:b%' || g, ('123e4567-e89b-12d3-a456-42661417400' || g % 2)::uuid FROM generate_series($1::int, $2::int) g`,
			[]string{
				`UPDATE subscribers_restaurants SET note = 'n'`,
				`UPDATE subscribers_restaurants SET client_id = 'moved' WHERE client_id = 'a:b%3'`,
				`DELETE FROM subscribers_restaurants WHERE client_id LIKE '%2'`,
			},
		},
		{
			"of texts", `"A" text, b text, client_id text, restaurant_id text, PRIMARY KEY ("A", b)`,
			[]string{"A", "b"},
			`INSERT INTO subscribers_restaurants SELECT repeat(':', g % 3), repeat(':', g / 3) || '%', 'c' || g, 'r' FROM generate_series($1::int, $2::int) g`,
			[]string{`DELETE FROM subscribers_restaurants WHERE "A" = '::'`, `UPDATE subscribers_restaurants SET "A" = '%3A' WHERE b = ':%' AND "A" = ':'`},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t)
			r.cfg.KeyColumns = c.key
			r.Exec(`DROP TABLE subscribers_restaurants; CREATE TABLE subscribers_restaurants (` + c.table + `)`)
			r.Exec(c.insert, 1, 9)
			r.setup().start()
			seen := []string{"r", "r0", "r1"}
			r.same(seen...)
			r.Exec(c.insert, 10, 14)
			for _, change := range c.changes {
				r.Exec(change)
				r.same(seen...)
			}
			if st := r.m.Status(); st.Snapshots != 1 || st.Reconnects != 0 {
				t.Errorf("status is %+v, want one snapshot and no reconnect", st)
			}
		})
	}
}

// A part of the key, or a column that may be NULL, does not tell rows apart.
func TestCompositeKeyRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, table string
		key         []string
		what        string
	}{
		{"half of it", `id int, day date, client_id text, restaurant_id text, PRIMARY KEY (id, day)`, []string{"id"}, `"id" of`},
		{"may be NULL", `id int, day date, client_id text, restaurant_id text, UNIQUE (id, day)`, []string{"id", "day"}, `"id", "day" of`},
		{"not carried", `id int NOT NULL, day date NOT NULL, client_id text PRIMARY KEY, restaurant_id text, UNIQUE (id, day)`, []string{"id", "day"}, "replica identity"},
		{"a column that is not there", `id int PRIMARY KEY, client_id text, restaurant_id text`, []string{"id", "day"}, `no column "day"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t)
			r.cfg.KeyColumns = c.key
			r.Exec(`DROP TABLE subscribers_restaurants; CREATE TABLE subscribers_restaurants (` + c.table + `)`)
			r.Exec(fmt.Sprintf(`CREATE PUBLICATION dinnerbell FOR TABLE %s`, r.cfg.QuotedTable()))
			r.start()
			if h := r.awaitHalt(); !strings.Contains(h.What, c.what) || h.Hint == "" {
				t.Errorf("halt is %q, hint %q; want %q", h.What, h.Hint, c.what)
			}
		})
	}
}

// The table's owner alters columns while others write: the stream goes on where it
// can, and a snapshot is taken where no message carries the new values.
func TestAltersUnderLoad(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.Exec(`ALTER TABLE subscribers_restaurants ADD note text`)
	r.setup().start()
	r.barrier()
	wait := r.write(50, 2, 150)
	alter := func(sql string) {
		r.Exec(`ALTER TABLE subscribers_restaurants ` + sql)
		r.barrier()
	}
	alter(`ADD extra int DEFAULT 7`)
	alter(`RENAME note TO remark`)
	alter(`DROP remark`)
	alter(`ADD stamp timestamptz DEFAULT clock_timestamp()`) // writes every row anew
	if st := r.m.Status(); st.Snapshots != 1 {
		t.Errorf("foreign columns led to a snapshot: %+v", st)
	}
	for i, sql := range []string{
		`ALTER client_id TYPE text, ALTER restaurant_id TYPE text`,
		`ALTER id TYPE bigint`,
		`ALTER client_id TYPE text USING 'was ' || client_id`, // the type stays, and no row is sent
	} {
		alter(sql)
		r.await("snapshot after "+sql, func(st Status) bool { return st.Snapshots == int64(i)+2 && st.State == StateStreaming })
	}
	wait()
	r.same(allRestaurants...)
}

// A column that is needed and dropped, while the mirror runs or is stopped.
func TestNeededColumnDropped(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().start()
	r.same("r")
	r.Exec(`ALTER TABLE subscribers_restaurants DROP restaurant_id`)
	for range 2 { // the second time at the start
		h := r.awaitHalt()
		if !strings.Contains(h.What, `no column "restaurant_id"`) || !strings.Contains(h.Hint, "source.columns") {
			t.Errorf("halt is %q, hint %q; want the column and source.columns", h.What, h.Hint)
		}
		_ = r.halt()
		r.start()
	}
	_ = r.halt()
	r.Exec(`ALTER TABLE subscribers_restaurants ADD restaurant_id text; INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('c', 'r')`)
	r.start()
	r.same("r")
}

// Partitions come and go with their rows, and the stream does not report that.
func TestPartitionsComeAndGo(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.Exec(`DROP TABLE subscribers_restaurants;
		CREATE TABLE subscribers_restaurants (id int PRIMARY KEY, client_id text, restaurant_id text) PARTITION BY RANGE (id);
		CREATE TABLE part0 PARTITION OF subscribers_restaurants FOR VALUES FROM (0) TO (100);
		CREATE TABLE part1 PARTITION OF subscribers_restaurants FOR VALUES FROM (100) TO (200);
		INSERT INTO subscribers_restaurants SELECT g, 'c' || g, 'r' || g % 2 FROM generate_series(90, 110) g;
		CREATE TABLE part2 (other int, restaurant_id text, id int NOT NULL, client_id text);
		ALTER TABLE part2 DROP other, ADD PRIMARY KEY (id);
		INSERT INTO part2 (id, restaurant_id, client_id) SELECT g, 'r0', 'new' || g FROM generate_series(200, 210) g`)
	r.setup().start()
	r.same("r0", "r1")
	for i, sql := range []string{
		`ALTER TABLE subscribers_restaurants ATTACH PARTITION part2 FOR VALUES FROM (200) TO (300)`,
		`TRUNCATE part1`,
		`ALTER TABLE subscribers_restaurants DETACH PARTITION part0`,
	} {
		r.Exec(sql)
		r.await("snapshot after "+sql, func(st Status) bool { return st.Snapshots == int64(i)+2 && st.State == StateStreaming })
		r.same("r0", "r1")
	}
	// The attached one has its columns in another order.
	r.Exec(`UPDATE subscribers_restaurants SET id = id + 50 WHERE id > 205; DELETE FROM subscribers_restaurants WHERE id < 203`)
	r.same("r0", "r1")
	if st := r.m.Status(); st.Snapshots != 4 {
		t.Errorf("status is %+v, want no snapshot for changes of rows", st)
	}
}

// A temporary table is refused, in whatever schema it lies.
func TestTemporaryTableRefused(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	conn, err := r.Pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), `CREATE TEMP TABLE subscribers_restaurants (id int PRIMARY KEY, client_id text, restaurant_id text)`); err != nil {
		t.Fatal(err)
	}
	if err := conn.QueryRow(t.Context(), `SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()`).Scan(&r.cfg.Schema); err != nil {
		t.Fatal(err)
	}
	_, err = source.Setup(t.Context(), r.owner().Config)
	if h, ok := errors.AsType[*halt.Error](err); !ok || !strings.Contains(h.What, "is temporary") {
		t.Errorf("setup: %v, want the refusal of a temporary table", err)
	}
}

// Publishing a table without a replica identity would break its writers: setup
// refuses before it publishes.
func TestSetupRefusesBeforeItPublishes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, sql, what string }{
		{"identity nothing", `ALTER TABLE subscribers_restaurants REPLICA IDENTITY NOTHING`, "REPLICA IDENTITY NOTHING"},
		{"no key", `ALTER TABLE subscribers_restaurants DROP CONSTRAINT pk_id`, "not unique"},
		{"no column", `ALTER TABLE subscribers_restaurants DROP client_id`, "no column"},
		{"inheritance children", `CREATE TABLE subs_2023 () INHERITS (subscribers_restaurants)`, "has inheritance children"},
		{"a view", `ALTER TABLE subscribers_restaurants RENAME TO t; CREATE VIEW subscribers_restaurants AS TABLE t`, "is a view"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t)
			r.Exec(c.sql)
			_, err := source.Setup(t.Context(), r.owner().Config)
			if h, ok := errors.AsType[*halt.Error](err); !ok || !strings.Contains(h.What, c.what) || h.Hint == "" {
				t.Errorf("setup: %v, want %q and a hint", err, c.what)
			}
			if n := r.Int(`SELECT count(*) FROM pg_publication`); n != 0 {
				t.Error("the table was published all the same")
			}
		})
	}
}
