package cdc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"dinnerbell/internal/testenv/envtest/damage"
	"dinnerbell/state"
)

// damage makes the stored rows wrong, while nobody has them open.
func (r *deployment) damage(do func(d *damage.Rows)) {
	r.t.Helper()
	if err := r.halt(); err != nil {
		r.t.Fatal(err)
	}
	if err := r.store.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.store = nil
	damage.Do(r.t, r.dir, do)
}

// verify compares, and returns the differences as text, sorted.
func (r *deployment) verify(repair bool) (Verified, []string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	var found []string
	done, err := r.m.Verify(ctx, repair, func(d *state.Difference) error {
		for _, f := range d.Faults() {
			text := fmt.Sprintf("%s: %s %s %s/%s", d.Row.Text(), f.Index, f.What, f.Restaurant.Text(), f.Client.Text())
			if f.What == state.FaultDifferent {
				text += fmt.Sprintf(" is %s/%s", f.Found.Restaurant.Text(), f.Found.Client.Text())
			}
			found = append(found, text)
		}
		return nil
	})
	if err != nil {
		r.t.Fatalf("%v; %+v", err, r.m.Status())
	}
	slices.Sort(found)
	return done, found
}

// Each way in which the local rows can be wrong is found, named and repaired,
// while the table is written.
func TestVerify(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]string{"integer keys": `$1::int`, "text keys": `'key ' || $1`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t)
			if strings.Contains(key, "key") {
				r.Exec(`ALTER TABLE subscribers_restaurants ALTER id DROP DEFAULT, ALTER id TYPE text`)
			}
			r.setup().start()
			r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id)
				SELECT ` + strings.ReplaceAll(key, "$1", "g") + `, 'c' || g, 'r' || g % 7 FROM generate_series(1, 3000) g`)
			r.Exec(`UPDATE subscribers_restaurants SET client_id = '' WHERE id = ` + strings.ReplaceAll(key, "$1", "63"))
			r.same()
			id := func(n int) string {
				if strings.Contains(key, "key") {
					return fmt.Sprintf("key %d", n)
				}
				return fmt.Sprint(n)
			}
			r.damage(func(d *damage.Rows) {
				d.DropRow(id(7))
				d.SetRow(id(100001), "x", "y")
				d.SetRow(id(14), "r1", "c14")
				d.DropJoin(id(21), "r0", "c21")
				d.SetJoin(id(100002), "x", "y")
				d.DropJoin(id(28), "r0", "c28")
				d.SetJoin(id(28), "r0", "c29")
				d.DropRow(id(35))
				d.DropJoin(id(35), "r0", "c35")
				d.SetJoin(id(63), "r0", "c63")
			})
			want := []string{
				id(7) + ": rows missing r0/c7",
				id(100001) + ": rows extra x/y",
				id(14) + ": rows different r0/c14 is r1/c14",
				id(21) + ": join missing r0/c21",
				id(100002) + ": join extra x/y",
				id(28) + ": join different r0/c28 is r0/c29",
				id(35) + ": rows missing r0/c35",
				id(35) + ": join missing r0/c35",
				id(63) + ": join extra r0/c63",
			}
			slices.Sort(want)
			r.start()
			r.barrier()
			stop := r.writeElsewhere(strings.ReplaceAll(key, "$1", "1000000 + $1::int"))
			done, found := r.verify(false)
			if !slices.Equal(found, want) || done.Differences != 8 || done.Mended != 0 || done.Sound() {
				t.Errorf("found %q\nwant  %q; %+v", found, want, done)
			}
			if done, found = r.verify(true); !slices.Equal(found, want) || done.Mended != 8 || !done.Sound() {
				t.Errorf("when repairing, found %q\nwant  %q; %+v", found, want, done)
			}
			if done, found = r.verify(false); len(found) != 0 || !done.Sound() || done.Rows < 3000 {
				t.Errorf("after the repair, found %q; %+v", found, done)
			}
			stop()
			r.same("x")
			if err := r.store.CheckRows(t.Context()); err != nil {
				t.Error(err)
			}
			r.noSideSlots()
		})
	}
}

// writeElsewhere inserts, changes and deletes rows under keys of their own until
// stop, which returns once that has come to its end.
func (r *deployment) writeElsewhere(key string) (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES (`+key+`, 'elsewhere', 'r0')`, n)
			r.Exec(`UPDATE subscribers_restaurants SET restaurant_id = 'r1' WHERE id = `+key, n)
			if n%3 == 0 {
				r.Exec(`DELETE FROM subscribers_restaurants WHERE id = `+key, n)
			}
		}
	})
	return func() {
		cancel()
		group.Wait()
	}
}

// A verification never finds a right row wrong, whatever is written meanwhile.
func TestVerifyFindsNothingWhereNothingIs(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().start()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id)
		SELECT 'client ' || g % 997, 'restaurant ' || g % 6 FROM generate_series(1, 3000) g`)
	r.barrier()
	ended := make(chan struct{})
	wait := r.write(5, 3, 250)
	go func() { defer close(ended); wait() }()
	rounds := 0
	for writing := true; writing; rounds++ {
		select {
		case <-ended:
			writing = false
		default:
		}
		if done, found := r.verify(rounds%2 == 1); len(found) != 0 || !done.Sound() {
			t.Fatalf("round %d found %q; %+v", rounds, found, done)
		}
	}
	t.Logf("%d rounds", rounds)
	r.same(allRestaurants...)
	if st := r.m.Status(); st.Snapshots != 1 || st.Reconnects != 0 {
		t.Errorf("status is %+v, want the one snapshot at the start", st)
	}
}

// A state that is wrong everywhere takes no more memory than one that is wrong
// in a few places: the rest is counted, not looked at.
func TestVerifyIsBounded(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().start()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'c' || g, 'r' FROM generate_series(1, 2000) g`)
	r.barrier()
	r.damage((*damage.Rows).DropAll)
	r.start()
	r.barrier()
	r.m.compareAtOnce, r.m.compareRounds = 300, 3
	done, found := r.verify(true)
	if done.Differences < 800 || done.Differences > 1000 || done.Mended != done.Differences || done.Unchecked != 2000-done.Mended || len(found) != 2*int(done.Mended) || done.Sound() {
		t.Errorf("found %d; %+v", len(found), done)
	}
	for !done.Sound() {
		done, _ = r.verify(true)
	}
	r.same("r")
}

// Where joins do not wait for the stream, a verification and a rebuild do: the
// rows here are compared as of a position that the snapshot of the table is not
// ahead of.
func TestBesideTheStreamIsStrict(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.cfg.Freshness = Off
	r.setup().start()
	r.await("stream", func(st Status) bool { return st.State == StateStreaming })
	for n := range 5 {
		r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ($1, 'r')`, fmt.Sprint(n))
		ctx, w, err := r.m.work.beginWork(t.Context(), WorkVerify)
		if err != nil {
			t.Fatal(err)
		}
		v := &verification{m: r.m, w: w}
		err = v.freezeBoth(ctx)
		if err == nil && v.done.At < v.side.start {
			t.Errorf("compares the rows at %s with the table at %s", v.done.At, v.side.start)
		}
		if err := r.m.work.endWork(ctx, w, errors.Join(err, v.closeBoth())); err != nil {
			t.Fatal(err)
		}
		r.rebuilt()
		if got := r.store.Subscriptions(); got != int64(n+1) {
			t.Errorf("%d subscriptions after a rebuild, want %d", got, n+1)
		}
	}
}
