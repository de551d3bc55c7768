package cdc

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/cdc/source"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state"
)

// A server that is killed comes back and nothing was lost, doubled or rebuilt.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	server := r.own(nil)
	r.setup().start()
	r.barrier()
	for i := range 2 {
		r.write(uint64(20+i), 2, 50)()
		r.kill(server)
		r.write(uint64(30+i), 2, 50)()
		r.same(allRestaurants...)
	}
	if st := r.m.Status(); st.Snapshots != 1 || st.Reconnects < 2 {
		t.Errorf("status is %+v, want one snapshot and two reconnects", st)
	}
	// A server that shuts down waits until all is acknowledged; testenv makes
	// it hurry only after 15 seconds.
	r.write(40, 2, 20)()
	began := time.Now()
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the server's shutdown took %s: it waited for us", took)
	}
}

// awaitFree waits until the server has noticed that the mirror is gone.
func (r *deployment) awaitFree() {
	r.t.Helper()
	envtest.Until(r.t, patience, func() error {
		if n := r.Int(`SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND active`, r.cfg.Slot); n != 0 {
			return fmt.Errorf("slot %s is still active", r.cfg.Slot)
		}
		return nil
	})
}

// Where slots can survive a failover, the mirror's slot does.
func TestSlotIsForFailover(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().start()
	r.barrier()
	if r.Int(`SELECT current_setting('server_version_num')::int`) < source.FailoverVersion {
		t.Skip("slots have no failover here")
	}
	if r.Int(`SELECT count(*) FROM pg_replication_slots s WHERE slot_name = $1 AND (to_jsonb(s)->>'failover')::bool`, r.cfg.Slot) != 1 {
		t.Error("the slot is not a failover slot")
	}
}

// A transaction of many rows is applied in parts, and seen as a whole.
func TestHugeTransaction(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	var parts, largest atomic.Int64
	r.hooks.beforeApply = func(b *state.Batch) {
		if b.End == 0 {
			parts.Add(1)
			if n := r.store.Subscriptions(); n != 1 {
				t.Errorf("%d subscriptions are visible in the middle of a transaction, want 1", n)
			}
		}
		if n := int64(len(b.Changes)); n > largest.Load() {
			largest.Store(n)
		}
	}
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('first', 'r')`)
	r.start()
	r.barrier()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || g, 'r' || g % 3 FROM generate_series(1, 40000) g`)
	r.same("r", "r0", "r1", "r2")
	if parts.Load() < 4 || largest.Load() > pgoutput.MaxPartChanges {
		t.Errorf("%d parts, the largest of %d changes; want at least 4 parts of at most %d", parts.Load(), largest.Load(), pgoutput.MaxPartChanges)
	}
	r.write(5, 1, 20)()
	r.same(append(allRestaurants, "r", "r0", "r1", "r2")...)
}

// The connection is lost in the middle of a huge transaction: it comes again.
func TestHugeTransactionCutAndRepeated(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	var parts atomic.Int64
	cut := make(chan struct{})
	r.hooks.beforeApply = func(b *state.Batch) {
		if b.End == 0 && parts.Add(1) == 4 {
			r.Exec(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, r.cfg.Slot)
			close(cut)
		}
	}
	r.start()
	r.barrier()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || g, 'r' FROM generate_series(1, 60000) g`)
	await(t, cut)
	r.same("r")
	if st := r.m.Status(); st.Snapshots != 1 {
		t.Errorf("status is %+v, want one snapshot", st)
	}
}

// The daemon dies in the middle of a huge transaction, with parts on disk.
func TestTornTransactionIsMended(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'old ' || g, 'r' FROM generate_series(1, 17000) g`)
	var parts atomic.Int64
	cut := make(chan struct{})
	r.hooks.beforeApply = func(b *state.Batch) {
		if b.End == 0 && parts.Add(1) == 2 {
			r.stop()
			close(cut)
		}
	}
	r.start()
	r.barrier()
	r.Exec(`UPDATE subscribers_restaurants SET restaurant_id = 'r2', client_id = 'new ' || id`)
	await(t, cut)
	r.close()
	r.open()
	if !r.store.Torn() {
		t.Fatal("the state is whole: the test shows nothing")
	}
	r.hooks.beforeApply = nil
	r.start()
	r.same("r", "r2")
	if r.store.Torn() || r.m.Status().Snapshots != 0 {
		t.Errorf("torn %v after %+v, want whole without a snapshot", r.store.Torn(), r.m.Status())
	}
}

// Foreign columns come, go and change their names; unchanged TOAST is kept.
func TestSchemaChangesWhileStreaming(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.Exec(`ALTER TABLE subscribers_restaurants ADD note text; ALTER TABLE subscribers_restaurants ALTER client_id TYPE text, ALTER client_id SET STORAGE EXTERNAL`)
	r.setup().start()
	long := strings.Repeat("long ", 1000) // out of line
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id, note) VALUES ($1, 'r', 'n'), ('b', 'r', 'n')`, long)
	r.same("r")
	for _, change := range []string{
		`ALTER TABLE subscribers_restaurants ADD extra int DEFAULT 7`,
		`ALTER TABLE subscribers_restaurants RENAME note TO remark`,
		`UPDATE subscribers_restaurants SET remark = 'changed'`,
		`UPDATE subscribers_restaurants SET restaurant_id = 'r2'`,
		`ALTER TABLE subscribers_restaurants DROP remark`,
		`UPDATE subscribers_restaurants SET id = id + 100, restaurant_id = 'r3'`,
		`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('c', 'r3')`,
	} {
		r.Exec(change)
		r.same("r", "r2", "r3")
	}
	if got := r.clients("r3"); !slices.Contains(got, long) {
		t.Error("an unchanged out-of-line value was not kept")
	}
	if st := r.m.Status(); st.Snapshots != 1 {
		t.Errorf("status is %+v, want one snapshot", st)
	}
}

// A renamed column halts; with the configuration changed, a snapshot mends it.
func TestNeededColumnGone(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().start()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'r')`)
	r.same("r")
	r.Exec(`ALTER TABLE subscribers_restaurants RENAME client_id TO customer`)
	r.Exec(`INSERT INTO subscribers_restaurants (customer, restaurant_id) VALUES ('b', 'r')`)
	if h := r.awaitHalt(); !strings.Contains(h.What, `no column "client_id"`) {
		t.Errorf("halt is %v, want the missing column named", h)
	}
	if st := r.m.Status(); st.State != StateHalted || st.Halted == nil {
		t.Errorf("status is %+v, want halted", st)
	}
	_ = r.halt()
	r.cfg.ClientColumn = "customer"
	r.start()
	r.same("r")
}

// A missing condition of a snapshot or a stream halts the mirror, with a hint.
func TestHalts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, sql, what, hint string }{
		{"no publication", ``, "does not exist in database", "dinnerbell setup"},
		{"table not published", `CREATE PUBLICATION dinnerbell`, "does not publish table", "dinnerbell setup"},
		{"no deletes", `CREATE PUBLICATION dinnerbell FOR TABLE subscribers_restaurants WITH (publish = 'insert, update')`, "does not publish all of", "dinnerbell setup"},
		{"row filter", `CREATE PUBLICATION dinnerbell FOR TABLE subscribers_restaurants WHERE (id > 1)`, "filters the rows", "DROP TABLE"},
		{"column list", `CREATE PUBLICATION dinnerbell FOR TABLE subscribers_restaurants (id, client_id)`, "leaves out one of the columns", "DROP TABLE"},
		{"identity nothing", `ALTER TABLE subscribers_restaurants REPLICA IDENTITY NOTHING`, "REPLICA IDENTITY NOTHING", "REPLICA IDENTITY DEFAULT"},
		{"no key", `ALTER TABLE subscribers_restaurants DROP CONSTRAINT pk_id`, "not unique", "ADD PRIMARY KEY"},
		{"key elsewhere", `ALTER TABLE subscribers_restaurants DROP CONSTRAINT pk_id; CREATE UNIQUE INDEX ON subscribers_restaurants (id);
			ALTER TABLE subscribers_restaurants ADD PRIMARY KEY (client_id)`, "not in the replica identity", "REPLICA IDENTITY FULL"},
		{"no table", `DROP TABLE subscribers_restaurants`, "does not exist", "source.table"},
		{"a view", `ALTER TABLE subscribers_restaurants RENAME TO t; CREATE VIEW subscribers_restaurants AS TABLE t`, "is a view, not a table", "the table behind it"},
		{"a materialized view", `ALTER TABLE subscribers_restaurants RENAME TO t; CREATE MATERIALIZED VIEW subscribers_restaurants AS TABLE t`, "is a materialized view", "the table behind it"},
		{"a foreign table", `DROP TABLE subscribers_restaurants; CREATE FOREIGN DATA WRAPPER w; CREATE SERVER elsewhere FOREIGN DATA WRAPPER w;
			CREATE FOREIGN TABLE subscribers_restaurants (id int, client_id text, restaurant_id text) SERVER elsewhere`, "is a foreign table", "the table behind it"},
		{"unlogged", `ALTER TABLE subscribers_restaurants SET UNLOGGED`, "is unlogged", "SET LOGGED"},
		{"foreign partition", `DROP TABLE subscribers_restaurants; CREATE FOREIGN DATA WRAPPER w; CREATE SERVER elsewhere FOREIGN DATA WRAPPER w;
			CREATE TABLE subscribers_restaurants (id int NOT NULL, client_id text, restaurant_id text) PARTITION BY LIST (id);
			CREATE FOREIGN TABLE far PARTITION OF subscribers_restaurants FOR VALUES IN (1) SERVER elsewhere`, "partition public.far of \"public\".\"subscribers_restaurants\" is a foreign table", "DETACH PARTITION public.far"},
		{"unlogged partition", `DROP TABLE subscribers_restaurants; CREATE TABLE subscribers_restaurants (id int PRIMARY KEY, client_id text, restaurant_id text) PARTITION BY LIST (id);
			CREATE UNLOGGED TABLE near PARTITION OF subscribers_restaurants FOR VALUES IN (1)`, "partition public.near of \"public\".\"subscribers_restaurants\" is unlogged", "TABLE public.near SET LOGGED"},
		{"partition without identity", `DROP TABLE subscribers_restaurants; CREATE TABLE subscribers_restaurants (id int PRIMARY KEY, client_id text, restaurant_id text) PARTITION BY LIST (id);
			CREATE TABLE near PARTITION OF subscribers_restaurants FOR VALUES IN (1); ALTER TABLE near REPLICA IDENTITY NOTHING`, "not in the replica identity of public.near", "TABLE public.near REPLICA IDENTITY FULL"},
		{"inheritance children", `CREATE TABLE subs_2023 () INHERITS (subscribers_restaurants); CREATE TABLE subs_2024 () INHERITS (subs_2023)`,
			"has inheritance children (public.subs_2023, public.subs_2024)", "ALTER TABLE public.subs_2023 NO INHERIT"},
		{"published as another", `ALTER TABLE subscribers_restaurants RENAME TO t; CREATE TABLE parent (LIKE t INCLUDING ALL) PARTITION BY RANGE (id);
			CREATE TABLE subscribers_restaurants PARTITION OF parent DEFAULT; CREATE PUBLICATION dinnerbell FOR TABLE parent WITH (publish_via_partition_root)`,
			"as those of the table whose partition it is", "publish_via_partition_root = false"},
		{"generated column", `ALTER TABLE subscribers_restaurants DROP client_id, ADD client_id text GENERATED ALWAYS AS ('c' || restaurant_id) STORED`, "is generated", "stored column"},
		{"no column", `ALTER TABLE subscribers_restaurants DROP client_id`, `no column "client_id"`, "source.columns"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t)
			if _, err := r.Pool.Exec(t.Context(), c.sql); source.SQLState(err) == "42601" {
				t.Skip("this server cannot do that")
			} else if err != nil {
				t.Fatal(err)
			}
			r.start()
			if h := r.awaitHalt(); !strings.Contains(h.What, c.what) || !strings.Contains(h.Hint, c.hint) {
				t.Errorf("halt is %q, hint %q; want %q, hint %q", h.What, h.Hint, c.what, c.hint)
			}
		})
	}
}

func TestHaltsWithoutPrivileges(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	role := "reader_" + r.Name
	r.Exec(fmt.Sprintf(`CREATE ROLE %s LOGIN`, role))
	t.Cleanup(func() { // after the database, which depends on it, is gone
		conn, err := pgx.Connect(context.Background(), strings.Replace(r.URL, "/"+r.Name, "/postgres", 1))
		if err == nil {
			_, err = conn.Exec(context.Background(), "DROP ROLE "+role)
			_ = conn.Close(context.Background())
		}
		_ = err // the server goes with the tests
	})
	url := strings.Replace(r.URL, "postgres@", role+"@", 1)
	r.cfg.URL = func() (string, error) { return url, nil }
	r.start()
	if h := r.awaitHalt(); !strings.HasPrefix(h.Hint, "GRANT SELECT") || !strings.HasSuffix(h.Hint, ` TO "`+role+`"`) {
		t.Errorf("halt is %v, want GRANT SELECT … TO %s", h, role)
	}
	_ = r.halt()
	r.Exec(fmt.Sprintf(`GRANT SELECT ON subscribers_restaurants TO %s`, role))
	r.start()
	if h := r.awaitHalt(); !strings.Contains(h.What, "lacks REPLICATION") {
		t.Errorf("halt is %v, want the lack of REPLICATION", h)
	}
	_ = r.halt()
	r.Exec(fmt.Sprintf(`ALTER ROLE %s REPLICATION; ALTER TABLE subscribers_restaurants ENABLE ROW LEVEL SECURITY`, role))
	r.start()
	if h := r.awaitHalt(); !strings.Contains(h.What, "may not read all") {
		t.Errorf("halt is %v, want row-level security named", h)
	}
	_ = r.halt()
	r.Exec(`ALTER TABLE subscribers_restaurants DISABLE ROW LEVEL SECURITY`)
	r.start()
	r.same()
	_ = r.halt()
	r.Exec(fmt.Sprintf(`REVOKE ALL ON subscribers_restaurants FROM %s`, role))
}
