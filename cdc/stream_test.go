package cdc

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

// writer changes the table at random, in transactions of several rows, some of
// them rolled back.
type writer struct {
	r   *deployment
	rnd *rand.Rand
}

// run makes n transactions. The context is the test's.
func (w *writer) run(n int) error {
	ctx := w.r.t.Context()
	conn, err := pgx.Connect(ctx, w.r.URL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for i := range n {
		if err := w.transaction(ctx, conn, i); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) transaction(ctx context.Context, conn *pgx.Conn, i int) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }()
	// Two writers that update and delete at random would meet in a deadlock.
	if _, err := tx.Exec(ctx, `LOCK TABLE subscribers_restaurants IN SHARE ROW EXCLUSIVE MODE`); err != nil {
		return err
	}
	for range 1 + w.rnd.IntN(4) {
		sql, args := w.statement(i)
		if _, err := tx.Exec(ctx, sql, args...); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	if w.rnd.IntN(8) == 0 {
		return tx.Rollback(ctx)
	}
	return tx.Commit(ctx)
}

func (w *writer) restaurant() string { return fmt.Sprintf("restaurant %d", w.rnd.IntN(6)) }

func (w *writer) client() string {
	if w.rnd.IntN(2) == 0 {
		return fmt.Sprintf("%08x-0000-4000-8000-%012x", w.rnd.IntN(40), 7)
	}
	return fmt.Sprintf("client %d", w.rnd.IntN(40))
}

// statement picks a statement. It chooses rows by a random id, so that many
// statements meet no row.
func (w *writer) statement(i int) (string, []any) {
	id := w.rnd.IntN(400)
	switch w.rnd.IntN(12) {
	case 0:
		return `UPDATE subscribers_restaurants SET client_id = $2 WHERE id % 40 = $1 % 40`, []any{id, w.client()}
	case 1:
		return `UPDATE subscribers_restaurants SET restaurant_id = $2 WHERE id = $1`, []any{id, w.restaurant()}
	case 2:
		// The key, to one that nobody has: above the sequence.
		return `UPDATE subscribers_restaurants SET id = id + 1000000 + (SELECT max(id) FROM subscribers_restaurants), restaurant_id = $2
			WHERE id = $1`, []any{id, w.restaurant()}
	case 3, 4:
		return `DELETE FROM subscribers_restaurants WHERE id % 30 = $1 % 30`, []any{id}
	case 5:
		if i%25 == 0 {
			return `TRUNCATE subscribers_restaurants`, nil
		}
		return `DELETE FROM subscribers_restaurants WHERE id = $1`, []any{id}
	case 6:
		return `INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'many ' || g % 17, $1 FROM generate_series(1, 30) g`,
			[]any{w.restaurant()}
	}
	return `INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ($1, $2)`, []any{w.client(), w.restaurant()}
}

// write runs writers side by side and waits for them.
func (r *deployment) write(seed uint64, writers, transactions int) (wait func()) {
	var group sync.WaitGroup
	for i := range writers {
		group.Go(func() {
			w := writer{r: r, rnd: rand.New(rand.NewPCG(seed, uint64(i)))}
			if err := w.run(transactions); err != nil {
				r.t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	return group.Wait
}

var allRestaurants = []string{
	"restaurant 0", "restaurant 1", "restaurant 2", "restaurant 3", "restaurant 4", "restaurant 5",
}

// The mirror begins while the table is being written, and comes out equal.
func TestSnapshotAndStreamEqualSQL(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id)
		SELECT 'client ' || g % 997, 'restaurant ' || g % 6 FROM generate_series(1, 5000) g`)
	wait := r.write(1, 3, 100)
	r.start()
	wait()
	r.same(allRestaurants...)
	r.write(2, 2, 60)()
	r.same(allRestaurants...)
	if st := r.m.Status(); st.State != StateStreaming && st.State != StateCatchingUp || st.Snapshots != 1 {
		t.Errorf("status is %+v, want streaming after one snapshot", st)
	}
}

// Each restart goes on from the durable position, without a new snapshot.
func TestRestartContinues(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	r.start()
	r.barrier()
	for i := range 4 {
		wait := r.write(uint64(10+i), 2, 40)
		if err := r.halt(); err != nil {
			t.Fatal(err)
		}
		wait()
		if i%2 == 0 { // another process
			r.close()
		}
		r.start()
		r.same(allRestaurants...)
		if n := r.m.Status().Snapshots; n != 0 {
			t.Fatalf("restart %d took %d snapshots: %+v", i, n, r.m.Status())
		}
	}
}
