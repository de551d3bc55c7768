package cdc

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"dinnerbell/cdc/source"
	"dinnerbell/internal/precondition"
	"dinnerbell/internal/testenv/envtest"
)

// Names that need quotes, other schemas, and all types of keys and ids come
// out the same by snapshot and by stream.
func TestNamesAndTypes(t *testing.T) {
	t.Parallel()
	const uuid = "123e4567-e89b-12d3-a456-4266141740%02d"
	for _, c := range []struct{ key, client, ids string }{
		{"int2", "varchar", "%d"},
		{"int8", "text", "%d"},
		{"uuid", "uuid", uuid},
		{"text", "char(40)", "Key %d"},
		{"int4", "int8", "%d"},
		{"numeric", "varchar(50)", "%d"},
	} {
		t.Run(c.key+" "+c.client, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t)
			r.cfg.Schema, r.cfg.Table = `Odd "Schema"`, "Subscribers of 'R'"
			r.cfg.KeyColumns, r.cfg.ClientColumn, r.cfg.RestaurantColumn = []string{"The Id"}, "Client", "select"
			r.cfg.Publication = `Odd 'pub' "x"`
			r.Exec(fmt.Sprintf(`CREATE SCHEMA "Odd ""Schema"""; CREATE TABLE %s ("The Id" %s PRIMARY KEY, "Client" %s, other int, "select" text)`,
				r.cfg.QuotedTable(), c.key, c.client))
			add := func(n int) {
				client := fmt.Sprintf(uuid, n)
				if strings.HasPrefix(c.client, "int") {
					client = fmt.Sprint(n)
				}
				r.Exec(fmt.Sprintf(`INSERT INTO %s VALUES ('%s', '%s', 1, 'r')`, r.cfg.QuotedTable(), fmt.Sprintf(c.ids, n), client))
			}
			add(1)
			add(2)
			r.setup().start()
			r.barrier()
			if got := len(r.clients("r")); got != 2 {
				t.Errorf("%d clients after the snapshot, want 2", got)
			}
			add(3)
			r.Exec(fmt.Sprintf(`DELETE FROM %s WHERE "The Id" = '%s'`, r.cfg.QuotedTable(), fmt.Sprintf(c.ids, 1)))
			r.Exec(fmt.Sprintf(`UPDATE %s SET "The Id" = '%s', "select" = 'r2' WHERE "The Id" = '%s'`, r.cfg.QuotedTable(), fmt.Sprintf(c.ids, 4), fmt.Sprintf(c.ids, 2)))
			r.barrier()
			one, two := r.clients("r"), r.clients("r2")
			if len(one) != 1 || len(two) != 1 || r.store.Subscriptions() != 2 {
				t.Errorf("r has %q, r2 %q, %d rows; want one each", one, two, r.store.Subscriptions())
			}
			// The stream and the snapshot spell ids alike.
			streamed := slices.Concat(one, two)
			if err := r.halt(); err != nil {
				t.Fatal(err)
			}
			if err := New(r.cfg, r.store).Rebuild(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			if copied := slices.Concat(r.clients("r"), r.clients("r2")); !slices.Equal(copied, streamed) {
				t.Errorf("the stream gave %q, a snapshot gives %q", streamed, copied)
			}
		})
	}
}

// NULL and empty ids, of clients and of restaurants, are no subscriptions, and
// are counted, in the snapshot and in the stream. They become one when they are
// filled in, and cease to be one when they are emptied.
func TestRowsThatAreNoSubscription(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.Exec(`ALTER TABLE subscribers_restaurants ALTER client_id DROP NOT NULL, ALTER restaurant_id DROP NOT NULL`)
	r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES (1, NULL, 'r'), (2, '', 'r'), (3, 'c', 'r'), (10, 'c', NULL), (11, NULL, NULL)`)
	r.setup().start()
	r.same("r")
	r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES (4, '', 'r'), (5, NULL, 'r'), (12, 'd', NULL)`)
	r.same("r")
	if st := r.m.Status(); st.BadIDs != 2 || st.NullIDs != 6 || st.Subscriptions != 1 {
		t.Errorf("status is %+v, want 2 bad ids, 6 that are NULL and 1 subscription", st)
	}
	r.Exec(`UPDATE subscribers_restaurants SET client_id = 'now' WHERE id IN (1, 4)`)
	r.Exec(`UPDATE subscribers_restaurants SET restaurant_id = 'r' WHERE id IN (10, 12)`)
	r.same("r")
	r.Exec(`UPDATE subscribers_restaurants SET restaurant_id = NULL WHERE id = 3; UPDATE subscribers_restaurants SET client_id = NULL WHERE id = 10`)
	r.Exec(`DELETE FROM subscribers_restaurants WHERE id = 11`)
	r.same("r")
	if st := r.m.Status(); st.BadIDs != 2 || st.NullIDs != 8 || st.Subscriptions != 3 {
		t.Errorf("status is %+v, want 2 bad ids, 8 that are NULL and 3 subscriptions", st)
	}
}

// A row with a value of more than any message that the daemon's own tables have is read
// like others, in the snapshot and in the stream, whether the value is needed or not.
func TestLongRowsOfManyMegabytes(t *testing.T) {
	envtest.Long(t)
	r := newDeployment(t)
	r.Exec(`ALTER TABLE subscribers_restaurants ADD COLUMN note text`)
	r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES (1, repeat('x', 150 << 20), 'r'), (2, 'c', 'r')`)
	r.setup().start()
	r.barrier()
	r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES (3, repeat('y', 150 << 20), 'r')`)
	r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id, note) VALUES (4, 'd', 'r', repeat('z', 150 << 20))`)
	r.barrier()
	if st := r.m.Status(); st.BadIDs != 2 || st.Subscriptions != 2 {
		t.Errorf("status is %+v, want 2 bad ids and 2 subscriptions", st)
	}
}

// The statements that grant a right are run as they are.
func TestStatementsOfMissingRights(t *testing.T) {
	t.Parallel()
	for function, use := range map[string]func(t *testing.T, r *deployment) error{
		"pg_logical_emit_message(boolean, text, text)": func(t *testing.T, r *deployment) error {
			t.Helper()
			db := r.source()
			sql, err := db.DialSQL(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer source.CloseConn(sql.PgConn())
			return db.EmitMessage(t.Context(), sql)
		},
		"pg_try_advisory_lock(bigint)": func(t *testing.T, r *deployment) error {
			t.Helper()
			db := r.source()
			sql, err := db.DialSQL(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer source.CloseConn(sql.PgConn())
			lock := source.NewSlotLock(db, nil, 0)
			err = lock.Hold(t.Context(), sql)
			lock.StartHeartbeat(t.Context())()
			return err
		},
	} {
		t.Run(function, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t)
			if strings.HasPrefix(function, "pg_logical_emit_message") && r.Int(`SELECT current_setting('server_version_num')::bigint`) >= 170000 {
				function = strings.Replace(function, ")", ", boolean)", 1) // flush
			}
			r.Exec("REVOKE EXECUTE ON FUNCTION " + function + " FROM PUBLIC")
			halted, ok := errors.AsType[*source.HaltError](use(t, r))
			if !ok {
				t.Fatal("no halt")
			}
			remedy := precondition.SplitRemedy(halted.Err.Hint)
			if len(remedy.Statements) != 1 || remedy.Advice != "" {
				t.Fatalf("%+v", remedy)
			}
			r.Exec(remedy.Statements[0])
			if err := use(t, r); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSetupIsSafeToRepeat(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	steps := []struct {
		before string
		want   []string
	}{
		{"", source.SetupSQL(r.cfg.Config)},
		{"", nil},
		{`ALTER PUBLICATION dinnerbell DROP TABLE subscribers_restaurants`, []string{`ALTER PUBLICATION "dinnerbell" ADD TABLE "public"."subscribers_restaurants"`}},
		{`ALTER PUBLICATION dinnerbell SET (publish = 'insert')`, []string{`ALTER PUBLICATION "dinnerbell" SET (publish = 'insert, update, delete, truncate')`}},
		{"", nil},
		{`DROP PUBLICATION dinnerbell; CREATE PUBLICATION dinnerbell FOR ALL TABLES`, nil},
	}
	for _, step := range steps {
		if step.before != "" {
			r.Exec(step.before)
		}
		did, err := source.Setup(t.Context(), r.owner().Config)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(did, step.want) {
			t.Errorf("after %q: setup did %q, want %q", step.before, did, step.want)
		}
	}
	r.start()
	r.same()
}

// A partitioned table is mirrored as one.
func TestPartitionedTable(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.Exec(`DROP TABLE subscribers_restaurants;
		CREATE TABLE subscribers_restaurants (id int PRIMARY KEY, client_id text, restaurant_id text) PARTITION BY HASH (id);
		CREATE TABLE part0 PARTITION OF subscribers_restaurants FOR VALUES WITH (MODULUS 2, REMAINDER 0);
		CREATE TABLE part1 PARTITION OF subscribers_restaurants FOR VALUES WITH (MODULUS 2, REMAINDER 1)`)
	r.Exec(`INSERT INTO subscribers_restaurants SELECT g, 'c' || g, 'r' FROM generate_series(1, 10) g`)
	r.setup().start()
	r.same("r")
	r.Exec(`UPDATE subscribers_restaurants SET id = id + 100 WHERE id < 5; DELETE FROM subscribers_restaurants WHERE id = 7`)
	r.same("r")
	r.Exec(`TRUNCATE subscribers_restaurants`)
	r.same("r")
}

func TestRebuildTellsProgress(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'c' || g, 'r' FROM generate_series(1, 5000) g`)
	r.Exec(`ANALYZE subscribers_restaurants`)
	r.open()
	var rows, total int64
	if err := New(r.cfg, r.store).Rebuild(t.Context(), func(n, of int64) { rows, total = n, of }); err != nil {
		t.Fatal(err)
	}
	if rows != 5000 || total != 5000 || r.store.Subscriptions() != 5000 {
		t.Errorf("progress ended at %d of %d with %d subscriptions, want 5000", rows, total, r.store.Subscriptions())
	}
	r.start()
	r.same("r")
	if st := r.m.Status(); st.Snapshots != 0 {
		t.Errorf("status is %+v, want no further snapshot", st)
	}
}

// Credentials are read again for every connection.
func TestURLIsReadAgain(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	good, calls := r.role, 0
	r.cfg.URL = func() (string, error) {
		calls++ // Run's goroutine alone, until it has caught up
		if calls == 1 {
			return "", fmt.Errorf("the secret is being rotated")
		}
		return good, nil
	}
	r.start()
	r.same()
}
