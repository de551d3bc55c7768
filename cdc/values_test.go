package cdc

import (
	"fmt"
	"slices"
	"testing"

	"dinnerbell/state"
	"dinnerbell/state/id"
)

// Every replica identity with which Postgres publishes deletes, with client ids
// of up to a megabyte, stored out of line and not sent again when other columns
// change.
func TestReplicaIdentities(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, sql string }{
		{"default", `ALTER TABLE subscribers_restaurants REPLICA IDENTITY DEFAULT`},
		{"full", `ALTER TABLE subscribers_restaurants REPLICA IDENTITY FULL`},
		{"index", `ALTER TABLE subscribers_restaurants DROP CONSTRAINT pk_id;
			CREATE UNIQUE INDEX by_id ON subscribers_restaurants (id) INCLUDE (restaurant_id); ALTER TABLE subscribers_restaurants REPLICA IDENTITY USING INDEX by_id`},
		{"key out of line", `ALTER TABLE subscribers_restaurants ALTER id TYPE text USING id || repeat('k', 2500), ALTER id SET STORAGE EXTERNAL`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t)
			r.Exec(`ALTER TABLE subscribers_restaurants ALTER client_id SET STORAGE EXTERNAL, ADD note text`)
			key := "g"
			if c.name == "key out of line" {
				r.Exec(`ALTER TABLE subscribers_restaurants ALTER id DROP DEFAULT`)
				key = "g || repeat('k', 2500)" // more than stays in line, less than an index holds
			} else {
				r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) SELECT g, g || repeat('x', 1000000), 'r' FROM generate_series(100, 101) g`)
			}
			r.Exec(c.sql)
			r.setup().start()
			r.same("r")
			r.Exec(fmt.Sprintf(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) SELECT %s, g || repeat('y', 1000000), 'r' FROM generate_series(1, 5) g`, key))
			r.Exec(`UPDATE subscribers_restaurants SET note = 'n'`)
			r.Exec(`UPDATE subscribers_restaurants SET restaurant_id = 'r2' WHERE left(client_id, 1) IN ('1', '2')`)
			r.Exec(`UPDATE subscribers_restaurants SET client_id = 'short' WHERE client_id LIKE '3%'`)
			r.Exec(`DELETE FROM subscribers_restaurants WHERE client_id LIKE '4%' OR client_id LIKE '101%'`)
			r.same("r", "r2")
			if st := r.m.Status(); st.Snapshots != 1 || st.Reconnects != 0 || st.BadIDs != 0 {
				t.Errorf("status is %+v, want one snapshot, no reconnect, no bad ids", st)
			}
		})
	}
}

// An id longer than the limit is taken as NULL, by snapshot and by stream, and
// counted.
func TestIDsLongerThanTheLimit(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	add := func(length int) {
		r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES (repeat('x', $1::int), 'r')`, length)
	}
	add(id.MaxBytes)
	add(id.MaxBytes + 1)
	r.setup().start()
	r.barrier()
	add(id.MaxBytes)
	add(id.MaxBytes + 1)
	r.barrier()
	if st := r.m.Status(); st.BadIDs != 2 || st.Subscriptions != 2 || len(r.clients("r")) != 1 {
		t.Errorf("status is %+v with %d clients, want 2 bad ids and 2 subscriptions of one client", st, len(r.clients("r")))
	}
}

// An unchanged out-of-line value is not sent. If the row that has it is not
// here, nothing can be made up: a new snapshot is taken.
func TestUnchangedValueOfAMissingRow(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.Exec(`ALTER TABLE subscribers_restaurants ALTER client_id SET STORAGE EXTERNAL, ADD note text`)
	r.setup()
	r.hooks.beforeApply = func(b *state.Batch) { // loses every row that is inserted
		b.Changes = slices.DeleteFunc(b.Changes, func(c id.Change) bool { return c.Op == id.Insert })
	}
	r.start()
	r.barrier()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES (repeat('x', 100000), 'r')`)
	r.barrier()
	if n := r.store.Subscriptions(); n != 0 {
		t.Fatalf("the store has %d rows: the test shows nothing", n)
	}
	r.Exec(`UPDATE subscribers_restaurants SET note = 'n'`)
	r.same("r")
	if st := r.m.Status(); st.Snapshots != 2 || st.Subscriptions != 1 {
		t.Errorf("status is %+v, want a second snapshot and one row", st)
	}
}
