package cdc

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/cdc/replication"
	"dinnerbell/cdc/source"
	"dinnerbell/internal/testenv/envtest"
)

// An event that makes the stream another one leads to a new snapshot by itself, or
// to a halt until the operator asks for a snapshot.
func TestRebuilds(t *testing.T) {
	t.Parallel()
	recreate := func(r *deployment) {
		r.Exec(`SELECT pg_drop_replication_slot($1)`, r.cfg.Slot)
		r.Exec(`SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, r.cfg.Slot)
	}
	for _, c := range []struct {
		name, reason string
		change       func(r *deployment)
	}{
		{"slot dropped", "does not exist", func(r *deployment) { r.Exec(`SELECT pg_drop_replication_slot($1)`, r.cfg.Slot) }},
		{"slot made again", "ahead of the local state", recreate},
		{"slot advanced", "ahead of the local state", func(r *deployment) {
			r.Exec(`SELECT pg_replication_slot_advance($1, pg_current_wal_flush_lsn())`, r.cfg.Slot)
		}},
		{"publication made again", "publication dinnerbell was made again", func(r *deployment) {
			r.Exec(`DROP PUBLICATION dinnerbell`)
			r.setup()
		}},
		{"table made again", "was made again", func(r *deployment) {
			r.Exec(`ALTER TABLE subscribers_restaurants RENAME TO old_subscribers`)
			r.Exec(`CREATE TABLE subscribers_restaurants (id int PRIMARY KEY, client_id text, restaurant_id text)`)
			r.setup()
		}},
	} {
		for _, halts := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, halt %v", c.name, halts), func(t *testing.T) {
				t.Parallel()
				r := newDeployment(t).setup()
				r.cfg.HaltOnLost = halts
				r.start() // a first snapshot is taken in any case
				r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES (1, 'a', 'r'), (2, 'b', 'r')`)
				r.same("r")
				if err := r.halt(); err != nil {
					t.Fatal(err)
				}
				r.Exec(`DELETE FROM subscribers_restaurants WHERE id = 1`)
				r.awaitFree()
				c.change(r)
				r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES (3, 'c', 'r')`)
				if halts {
					r.haltsAndIsRebuilt(c.reason)
					return
				}
				r.start()
				r.same("r")
				if st := r.m.Status(); st.Snapshots != 1 || !strings.Contains(st.RebuildReason, c.reason) {
					t.Errorf("status is %+v, want one snapshot because of %q", st, c.reason)
				}
			})
		}
	}
}

// haltsAndIsRebuilt: the mirror halts and leaves the former rows alone; after the
// command that it names it goes on.
func (r *deployment) haltsAndIsRebuilt(reason string) {
	r.t.Helper()
	before := r.clients("r")
	r.start()
	if h := r.awaitHalt(); !strings.Contains(h.What, reason) || h.Hint != "dinnerbell rebuild --offline" {
		r.t.Errorf("halt is %q, hint %q; want %q and the command", h.What, h.Hint, reason)
	}
	if after := r.clients("r"); !slices.Equal(before, after) || r.m.Status().Snapshots != 0 {
		r.t.Errorf("rows are %q, were %q; %+v", after, before, r.m.Status())
	}
	_ = r.halt()
	if err := New(r.cfg, r.store).Rebuild(r.t.Context(), nil); err != nil {
		r.t.Fatal(err)
	}
	r.start()
	r.same("r")
	if st := r.m.Status(); st.Snapshots != 0 {
		r.t.Errorf("status is %+v, want no further snapshot", st)
	}
}

// The table leaves the publication and comes back while the mirror runs.
func TestPublicationTouchedWhileRunning(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().start()
	r.barrier()
	// In one transaction: seen in between, it would be a halt.
	r.Exec(`ALTER PUBLICATION dinnerbell DROP TABLE subscribers_restaurants;
		INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('unseen', 'r');
		ALTER PUBLICATION dinnerbell ADD TABLE subscribers_restaurants`)
	r.await("second snapshot", func(st Status) bool { return st.Snapshots == 2 && st.State == StateStreaming })
	r.same("r")
}

// The publication is narrowed while the mirror runs: the mirror halts before it
// serves a wrong audience for long, and after mending it knows that changes went by
// unseen.
func TestPublicationNarrowedWhileRunning(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, sql, what string }{
		{"inserts only", `ALTER PUBLICATION dinnerbell SET (publish = 'insert')`, "does not publish all of"},
		{"row filter", `ALTER PUBLICATION dinnerbell SET TABLE subscribers_restaurants WHERE (id > 10)`, "filters the rows"},
		{"column list", `ALTER PUBLICATION dinnerbell SET TABLE subscribers_restaurants (id, client_id)`, "leaves out one of the columns"},
		{"table gone", `ALTER PUBLICATION dinnerbell DROP TABLE subscribers_restaurants`, "does not publish table"},
		{"publication gone", `DROP PUBLICATION dinnerbell`, "does not exist in database"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t).setup().start()
			r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES (1, 'a', 'r'), (2, 'b', 'r')`)
			r.same("r")
			if _, err := r.Pool.Exec(t.Context(), c.sql); source.SQLState(err) == "42601" {
				t.Skip("this server cannot do that")
			} else if err != nil {
				t.Fatal(err)
			}
			r.Exec(`DELETE FROM subscribers_restaurants WHERE id = 1`)
			if h := r.awaitHalt(); !strings.Contains(h.What, c.what) || h.Hint == "" {
				t.Errorf("halt is %q, hint %q; want %q", h.What, h.Hint, c.what)
			}
			_ = r.halt()
			r.Exec(`DROP PUBLICATION IF EXISTS dinnerbell`)
			r.setup().start()
			r.same("r")
			if st := r.m.Status(); st.Snapshots != 1 {
				t.Errorf("status is %+v, want one snapshot", st)
			}
		})
	}
}

// The mirror never goes on with a server that was put back to a backup, as it is or
// on a timeline of its own, and written to again.
func TestServerRestoredFromABackup(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, reason string
		recovered    bool
	}{
		{"its files", "ahead of the server", false},
		{"recovered", "without what was applied here", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t)
			server := r.own(nil)
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			r.setup().start()
			r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('kept', 'r')`)
			r.same("r")
			must(r.halt())
			backup := filepath.Join(envtest.Dir(t), "backup")
			must(server.Stop())
			must(server.Backup(backup))
			r.startServer(server)
			r.start()
			r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'lost ' || g, 'r' FROM generate_series(1, 500) g`)
			r.same("r")
			must(r.halt())
			must(server.Stop())
			must(server.Restore(backup, c.recovered))
			r.startServer(server)
			if c.recovered {
				envtest.Until(t, patience, func() error {
					if r.Int(`SELECT pg_is_in_recovery()::int`) != 0 {
						return errors.New("still in recovery")
					}
					return nil
				})
				for r.lsn("pg_current_wal_flush_lsn") < r.store.DurableLSN() { // then positions alone do not show the difference
					r.write(70, 1, 50)()
				}
			}
			r.start()
			r.same(append(allRestaurants, "r")...)
			if st := r.m.Status(); st.Snapshots != 1 || !strings.Contains(st.RebuildReason, c.reason) {
				t.Errorf("status is %+v, want one snapshot because of %q", st, c.reason)
			}
		})
	}
}

// The address leads to another cluster that has all the same names.
func TestAnotherServer(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().start()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('here', 'r')`)
	r.same("r")
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	r.own(nil)
	r.setup()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('there', 'r')`)
	r.start()
	r.same("r")
	if st := r.m.Status(); st.Snapshots != 1 || !strings.Contains(st.RebuildReason, "the server is another one (system id") {
		t.Errorf("status is %+v, want one snapshot because of the system id", st)
	}
}

// A walsender decodes with the catalogs of the time when a change was written. What
// it cannot decode it never will, so that a new slot leads past it.
func TestWALThatCannotBeSent(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, during, behind string }{
		{"publication with another name", `ALTER PUBLICATION dinnerbell RENAME TO another`, `ALTER PUBLICATION another RENAME TO dinnerbell`},
		{"row filter that fails", `ALTER PUBLICATION dinnerbell SET TABLE subscribers_restaurants WHERE (10 / (id - 2) > 0)`,
			`ALTER PUBLICATION dinnerbell SET TABLE subscribers_restaurants`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t).setup()
			if strings.Contains(c.during, "WHERE") && r.version() < source.SchemasVersion {
				t.Skip("this server has no row filters")
			}
			r.hooks.healing = time.Second
			r.start()
			r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES (1, 'a', 'r')`)
			r.same("r")
			r.Exec("BEGIN; " + c.during + "; INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES (2, 'b', 'r'); " + c.behind + "; COMMIT")
			r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES (3, 'c', 'r')`)
			r.same("r")
			if st := r.m.Status(); !strings.Contains(st.RebuildReason, "cannot send its WAL") && !strings.Contains(st.RebuildReason, "publication was changed") {
				t.Errorf("the snapshot was taken because %q", st.RebuildReason)
			}
		})
	}
}

// Errors that do not come from the WAL give up no slot, and others not at once.
func TestStuck(t *testing.T) {
	t.Parallel()
	fails := func(code string) error {
		return fmt.Errorf("stream: %w", &replication.SendError{Cause: &pgconn.PgError{Code: code}})
	}
	for _, code := range []string{"53100", "57P01", "55006", "58030", "08006"} {
		if s := (walsenderFailure{}); s.giveUpReason(fails(code), 1, 0) != "" {
			t.Errorf("error %s gives the stream up", code)
		}
	}
	s := walsenderFailure{}
	if s.giveUpReason(&pgconn.PgError{Code: source.CodeUndefinedObject}, 1, 0) != "" {
		t.Error("an error of another connection gives the stream up")
	}
	for range 2 {
		if s.giveUpReason(fails("22012"), 1, time.Hour) != "" {
			t.Error("the stream is given up before its time")
		}
	}
	if s.giveUpReason(fails("22012"), 1, 0) == "" {
		t.Error("the stream is not given up after its time")
	}
	_ = s.giveUpReason(fails("22012"), 1, time.Hour)
	s.since = time.Now().Add(-time.Hour)
	if s.giveUpReason(fails("22012"), 2, time.Minute) != "" {
		t.Error("the stream is given up although it has moved")
	}
}
