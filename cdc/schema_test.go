package cdc

import (
	"fmt"
	"strings"
	"testing"
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
			r := newRig(t)
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

// What is not the whole key, or may be NULL, does not tell rows apart.
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
			r := newRig(t)
			r.cfg.KeyColumns = c.key
			r.Exec(`DROP TABLE subscribers_restaurants; CREATE TABLE subscribers_restaurants (` + c.table + `)`)
			r.Exec(fmt.Sprintf(`CREATE PUBLICATION dinnerbell FOR TABLE %s`, r.cfg.table()))
			r.start()
			if h := r.awaitHalt(); !strings.Contains(h.What, c.what) || h.Hint == "" {
				t.Errorf("halt is %q, hint %q; want %q", h.What, h.Hint, c.what)
			}
		})
	}
}
