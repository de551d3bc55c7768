package cdc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dinnerbell/cdc/source"
	"dinnerbell/cdc/tablecopy"
	"dinnerbell/internal/testenv/envtest"
)

// rebuilt rebuilds beside the stream.
func (r *deployment) rebuilt() Rebuilt {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*patience)
	defer cancel()
	done, err := r.m.RebuildOnline(ctx)
	if err != nil {
		r.t.Fatalf("%v; %+v", err, r.m.Status())
	}
	return done
}

// noSideSlots waits until the server has dropped the temporary slots.
func (r *deployment) noSideSlots() {
	r.t.Helper()
	envtest.Until(r.t, patience, func() error {
		if n := r.Int(`SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND slot_name <> $1`, r.cfg.Slot); n != 0 {
			return fmt.Errorf("%d temporary slots are left", n)
		}
		return nil
	})
}

// Rebuilds take over again and again while the table is written, truncated
// sometimes, and nobody sees anything but the table.
func TestRebuildOnline(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().start()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id)
		SELECT 'client ' || g % 997, 'restaurant ' || g % 6 FROM generate_series(1, 5000) g`)
	r.barrier()
	wait := r.write(11, 3, 150)
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		for n := 0; ctx.Err() == nil; n++ { // behind the barrier every committed row is there, flip or not
			client := fmt.Sprintf("fresh %d", n)
			r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ($1, 'always')`, client)
			r.barrier()
			r.Exec(`DELETE FROM subscribers_restaurants WHERE client_id = $1`, client)
		}
	})
	for range 4 {
		if done := r.rebuilt(); done.At > r.store.EndLSN() {
			t.Errorf("the new rows took over at %s, the state is at %s", done.At, r.store.EndLSN())
		}
	}
	wait()
	cancel()
	group.Wait()
	r.same(append(allRestaurants, "always")...)
	if err := r.store.CheckRows(t.Context()); err != nil {
		t.Error(err)
	}
	if st := r.m.Status(); st.Snapshots != 1 || st.Reconnects != 0 || st.Work != nil {
		t.Errorf("status is %+v, want the one snapshot at the start", st)
	}
	r.noSideSlots()
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	r.awaitFree()
	r.start() // the rows that took over are found again
	r.same(allRestaurants...)
	if st := r.m.Status(); st.Snapshots != 0 {
		t.Errorf("%d snapshots after a restart, want none", st.Snapshots)
	}
}

// A transaction of many parts that comes in the middle is applied to both.
func TestRebuildOnlineWithHugeTransactions(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	var once sync.Once
	r.hooks.paused = func() {
		once.Do(func() { // comes after the position at which the stream is held
			r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'late ' || g, 'r' FROM generate_series(1, 18000) g`)
		})
	}
	r.start()
	r.barrier()
	var group sync.WaitGroup
	group.Go(func() {
		for n := range 4 {
			r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT $1 || ' ' || g, 'r' FROM generate_series(1, 9000) g`, fmt.Sprint(n))
			r.Exec(`UPDATE subscribers_restaurants SET restaurant_id = 'other' WHERE id % 3 = 0`)
		}
	})
	r.rebuilt()
	group.Wait()
	r.rebuilt()
	r.same("r", "other")
	if err := r.store.CheckRows(t.Context()); err != nil {
		t.Error(err)
	}
}

// The stream is never held longer than promised: when the new rows do not get
// there in time it goes on, and another try follows.
func TestRebuildLetsGo(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	var holds atomic.Int64
	r.hooks.paused = func() {
		if holds.Add(1) > 2 {
			return
		}
		r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('held', 'r')`)
		r.barrier() // passes only when the stream was let go
	}
	r.start()
	r.barrier()
	r.rebuilt()
	if holds.Load() != 3 {
		t.Errorf("held %d times, want twice in vain and once more", holds.Load())
	}
	r.same("r")
}

// A failure meanwhile ends the rebuild with its reason, and leaves the served rows
// and the next rebuild alone.
func TestRebuildOnlineFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		spoil func(r *deployment)
		want  string
	}{
		{"its connection is lost", func(r *deployment) {
			r.Exec(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name LIKE $1`, r.cfg.Slot+`\_side\_%`)
		}, "terminating connection"},
		{"the publication is changed", func(r *deployment) {
			r.Exec(`ALTER PUBLICATION dinnerbell DROP TABLE subscribers_restaurants; ALTER PUBLICATION dinnerbell ADD TABLE subscribers_restaurants`)
			envtest.Until(r.t, patience, func() error {
				if !r.m.renewal.running.Load() {
					return errors.New("the mirror rebuilds nothing by itself yet")
				}
				return nil
			})
		}, "rebuilds the subscriptions by itself: the publication was changed"},
		{"the slot is dropped", func(r *deployment) {
			r.Exec(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, r.cfg.Slot)
			envtest.Until(r.t, patience, func() error {
				_, err := r.Pool.Exec(r.t.Context(), `SELECT pg_drop_replication_slot($1)`, r.cfg.Slot)
				return err
			})
			envtest.Until(r.t, patience, func() error {
				if _, _, err := r.m.work.beginWork(r.t.Context(), "test"); !strings.Contains(err.Error(), "by itself") {
					return err
				}
				return nil
			})
		}, "takes a new snapshot by itself"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t).setup()
			var once sync.Once
			r.hooks.copied = func() {
				if r.m.Status().Work != nil { // not the mirror's own snapshot
					once.Do(func() { c.spoil(r) })
				}
			}
			r.start()
			r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || g, 'r' FROM generate_series(1, 100) g`)
			r.barrier()
			if _, err := r.m.RebuildOnline(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("rebuild ended with %v, want %q", err, c.want)
			}
			r.await("stream", func(st Status) bool { return st.State == StateStreaming })
			r.same("r")
			r.rebuilt()
			r.same("r")
			r.noSideSlots()
		})
	}
}

// A source that cannot be asked is reported as such, and the attempt leaves nothing
// behind: neither a slot nor a connection.
func TestBesideTheStreamWithoutTheSource(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, url, spoil, mend, want string }{
		{name: "it is unreachable", url: "postgres://nobody@127.0.0.1:1/none?sslmode=disable", want: "connection refused"},
		{name: "the role may not replicate", spoil: `ALTER ROLE %s NOREPLICATION`, mend: `ALTER ROLE %s REPLICATION`, want: "lacks REPLICATION"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t)
			var spoilt atomic.Bool
			r.cfg.URL = func() (string, error) {
				if c.url != "" && spoilt.Load() {
					return c.url, nil
				}
				return r.role, nil
			}
			alter := func(sql string) {
				if sql != "" {
					r.Exec(fmt.Sprintf(sql, "role_"+r.Name))
				}
			}
			r.setup().start().barrier()
			const session = 4 // catalogs, barrier, replication, guard
			spoilt.Store(true)
			alter(c.spoil)
			if _, err := r.m.Verify(t.Context(), false, nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("verification ended with %v, want %q", err, c.want)
			}
			if _, err := r.m.RebuildOnline(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("rebuild ended with %v, want %q", err, c.want)
			}
			envtest.Until(t, patience, func() error {
				n := r.Int(`SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, r.m.cfg.ApplicationName)
				if n > session {
					return fmt.Errorf("%d connections, a session has %d", n, session)
				}
				return nil
			})
			r.noSideSlots()
			spoilt.Store(false)
			alter(c.mend)
			r.rebuilt()
		})
	}
}

// Only one rebuild runs at a time, and none begins before there are rows or after
// the end.
func TestRebuildOnlineIsAlone(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	r.hooks.paused = func() {
		if _, err := r.m.RebuildOnline(t.Context()); !errors.Is(err, ErrBusy) {
			t.Errorf("a second rebuild ended with %v, want ErrBusy", err)
		}
		if _, err := r.m.Verify(t.Context(), false, nil); !errors.Is(err, ErrBusy) {
			t.Errorf("a verification ended with %v, want ErrBusy", err)
		}
		if w := r.m.Status().Work; w == nil || w.Kind != WorkRebuild || w.Stage != "catch up" || time.Since(w.Since) > patience {
			t.Errorf("work under way is %+v", w)
		}
	}
	r.open()
	idle := New(r.cfg, r.store)
	if _, err := idle.RebuildOnline(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("without rows it ended with %v, want ErrBusy", err)
	}
	r.start()
	r.barrier()
	r.rebuilt()
	m := r.m
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.RebuildOnline(t.Context()); !errors.Is(err, ErrStopped) {
		t.Errorf("after the end it ended with %v, want ErrStopped", err)
	}
}

// A table that was truncated between the snapshot and the copy looks empty to
// it. The rebuild does not believe that.
func TestRebuildStartsOverAfterTruncate(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().start()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || g, 'r' FROM generate_series(1, 100) g`)
	r.barrier()
	ctx, w, err := r.m.work.beginWork(t.Context(), WorkRebuild)
	if err != nil {
		t.Fatal(err)
	}
	s, err := openSideStream(ctx, r.m, w, source.RowsCurrent)
	if err != nil {
		t.Fatal(err)
	}
	// Writes every row anew, and changes no column that is mirrored.
	r.Exec(`ALTER TABLE subscribers_restaurants ADD COLUMN note text DEFAULT random()::text`)
	if _, err := (&onlineRebuild{m: r.m, work: w, side: s}).loadBeside(ctx); !errors.Is(err, tablecopy.ErrRewritten) {
		t.Errorf("the copy ended with %v, want ErrRewritten", err)
	}
	s.close()
	if err := r.m.work.endWork(ctx, w, nil); err != nil {
		t.Fatal(err)
	}
	r.rebuilt()
	r.same("r")
}
