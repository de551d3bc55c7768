package cdc

import (
	"context"
	"sync/atomic"
	"testing"
)

// A statement that gives the table other files, between the slot's start and the
// copy, lets the snapshot read an empty table, or another one: the snapshot
// begins again, also if that happens over and over.
func TestTableRewrittenBeforeItIsCopied(t *testing.T) {
	t.Parallel()
	const parts = `DROP TABLE subscribers_restaurants;
		CREATE TABLE subscribers_restaurants (id int PRIMARY KEY, client_id text, restaurant_id text, note int) PARTITION BY RANGE (id);
		CREATE TABLE part0 PARTITION OF subscribers_restaurants FOR VALUES FROM (0) TO (10);
		CREATE TABLE part1 PARTITION OF subscribers_restaurants FOR VALUES FROM (10) TO (100);
		CREATE TABLE part2 (id int PRIMARY KEY, client_id text, restaurant_id text, note int);
		INSERT INTO part2 SELECT g, 'new' || g, 'r' FROM generate_series(100, 110) g;`
	for _, c := range []struct{ name, table, sql string }{
		{"another column's type", `ALTER TABLE subscribers_restaurants ADD note int;`, `ALTER TABLE subscribers_restaurants ALTER note TYPE bigint; ALTER TABLE subscribers_restaurants ALTER note TYPE int`},
		{"a column with a volatile default", ``, `ALTER TABLE subscribers_restaurants DROP IF EXISTS stamp; ALTER TABLE subscribers_restaurants ADD stamp timestamptz DEFAULT clock_timestamp()`},
		{"VACUUM FULL", ``, `VACUUM FULL subscribers_restaurants`},
		{"TRUNCATE and written anew", ``, `TRUNCATE subscribers_restaurants; INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'second' || g, 'r' FROM generate_series(1, 10) g`},
		{"one partition truncated", parts, `TRUNCATE part1; INSERT INTO part1 SELECT g, 'second' || g, 'r' FROM generate_series(15, 25) g`},
		{"partition attached", parts, `ALTER TABLE subscribers_restaurants ATTACH PARTITION part2 FOR VALUES FROM (100) TO (200)`},
		{"partition detached", parts, `ALTER TABLE subscribers_restaurants DETACH PARTITION part1`},
	} {
		for _, times := range []int32{1, maxAttempts + 1} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				r := newDeployment(t)
				if c.table != "" {
					r.Exec(c.table)
				}
				r.setup()
				r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) SELECT g, 'c' || g, 'r' FROM generate_series(1, 50) g`)
				if r.Int(`SELECT count(*) FROM pg_class WHERE relname = 'subscribers_restaurants_id_seq'`) > 0 {
					r.Exec(`SELECT setval('subscribers_restaurants_id_seq', 1000)`)
				}
				var made atomic.Int32
				r.hooks.slotMade = func() {
					if made.Add(1) > times {
						return
					}
					// A second ATTACH fails, and so begins nothing again.
					if _, err := r.Pool.Exec(context.Background(), c.sql); err != nil && made.Load() == 1 {
						t.Errorf("%s: %v", c.sql, err)
					}
				}
				r.start()
				r.barrier() // what SQL has now is no measure: it changes until then
				r.same("r")
				if made.Load() < 2 {
					t.Error("the snapshot did not begin again")
				}
			})
		}
	}
}
