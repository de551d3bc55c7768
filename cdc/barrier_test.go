package cdc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

func TestWholeRecord(t *testing.T) {
	t.Parallel()
	const segment, page = id.LSN(16 << 20), id.LSN(8 << 10)
	for _, c := range []struct {
		name                string
		insert, flush, want id.LSN
	}{
		{"idle", 0x1000328, 0x1000328, 0x1000328},
		{"unflushed commit", 0x1000328, 0x1000100, 0x1000328},
		{"flush is ahead", 0x1000100, 0x1000328, 0x1000100},
		{"behind a segment's header", 3*segment + 40, 3 * segment, 3 * segment},
		{"behind a page's header", 3*segment + page + 24, 3*segment + page, 3*segment + page},
		{"a record of 24 bytes inside of a page", 3*segment + 64 + 24, 3*segment + 64, 3*segment + 64 + 24},
		{"a page further", 3*segment + 2*page + 24, 3*segment + page, 3*segment + 2*page + 24},
	} {
		if got := skipPageHeader(c.insert, c.flush); got != c.want {
			t.Errorf("%s: wholeRecord(%s, %s) = %s, want %s", c.name, c.insert, c.flush, got, c.want)
		}
	}
}

// unrelatedLoad commits to another table until stop, which returns the transactions
// per second: up to 3,000 from each connection, for the walsenders of all tests
// beside this one have to read them, too.
func (r *deployment) unrelatedLoad(connections int) (stop func() (perSecond int)) {
	r.t.Helper()
	r.Exec(`CREATE TABLE IF NOT EXISTS other (n bigint)`)
	ctx, cancel := context.WithCancel(r.t.Context())
	var group sync.WaitGroup
	var commits atomic.Int64
	start := time.Now()
	for range connections {
		conn, err := pgx.Connect(ctx, r.URL)
		if err != nil {
			r.t.Fatal(err)
		}
		group.Go(func() {
			defer func() { _ = conn.Close(context.Background()) }()
			for ctx.Err() == nil {
				const n = 200 // the loop is the server's: it leaves the time to others
				_, err := conn.Exec(ctx, fmt.Sprintf(`DO $$BEGIN FOR i IN 1..%d LOOP INSERT INTO other VALUES (1); COMMIT;
					IF i %% 4 = 0 THEN PERFORM pg_sleep(0.001); END IF; END LOOP; END$$`, n))
				if err == nil {
					commits.Add(n)
				}
			}
		})
	}
	return func() int {
		cancel()
		group.Wait()
		return int(float64(commits.Load()) / time.Since(start).Seconds())
	}
}

// commitAndLook commits one row, passes the barrier, and must see the row then. It
// returns the duration of the wait.
func (r *deployment) commitAndLook(conn *pgx.Conn, client string) time.Duration {
	r.t.Helper()
	if _, err := conn.Exec(r.t.Context(), `INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ($1, $2)`, client, client); err != nil {
		r.t.Fatal(err)
	}
	start := time.Now()
	r.barrier()
	took := time.Since(start)
	if got := r.clients(client); !slices.Equal(got, []string{client}) {
		r.t.Fatalf("after the barrier the store has %q, want %q", got, client)
	}
	return took
}

// Commit, barrier, look: many times in each situation, never missed.
func TestBarrierSeesEveryCommit(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().start()
	r.barrier()
	conn, err := pgx.Connect(t.Context(), r.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()

	n := 0
	try := func(name string, tries int) {
		var took []time.Duration
		for range tries {
			n++
			took = append(took, r.commitAndLook(conn, fmt.Sprintf("client %d", n)))
		}
		slices.Sort(took)
		t.Logf("%-32s p50 %v  p99 %v  max %v  (nudges so far %d)", name, took[len(took)/2], took[len(took)*99/100], took[len(took)-1], r.m.Status().Nudges)
	}
	execute := func(sql string) {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}

	try("idle", 300)
	stop := r.unrelatedLoad(2)
	try("unrelated load", 2000)
	t.Logf("%d unrelated transactions per second", stop())
	execute(`SET synchronous_commit = off`)
	try("synchronous_commit = off", 100)
	stop = r.unrelatedLoad(1)
	try("off, and unrelated load", 100)
	t.Logf("%d unrelated transactions per second", stop())
	execute(`SET synchronous_commit = on`)

	idle, err := r.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := idle.Exec(t.Context(), `INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('open', 'open')`); err != nil {
		t.Fatal(err)
	}
	try("another is idle in transaction", 100)
	if got := r.clients("open"); len(got) != 0 {
		t.Errorf("an open transaction is visible: %q", got)
	}
	if err := idle.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.barrier()
	if got := r.clients("open"); len(got) != 1 {
		t.Errorf("a committed transaction is not visible: %q", got)
	}
}

// With nothing written at all, the barrier does not wait for anything to be.
func TestBarrierOnIdleServer(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().start()
	for i := range 20 {
		if i%2 == 1 {
			r.Exec(`SELECT pg_switch_wal()`)
		}
		r.barrier()
	}
}

func TestBarrierSharesQueries(t *testing.T) {
	t.Parallel()
	q := queryQueue{wake: make(chan struct{}, 1)}
	var got sync.Map
	var group sync.WaitGroup
	for i := range 10 {
		group.Go(func() {
			r, err := q.joinQuery(t.Context(), nil)
			if err != nil {
				t.Error(err)
			}
			got.Store(i, r)
		})
	}
	served := 0
	finished := make(chan struct{})
	go func() { group.Wait(); close(finished) }()
	for {
		select {
		case <-finished:
			if served < 1 || served > 10 {
				t.Errorf("%d rounds served 10 callers", served)
			}
			return
		case <-q.wake:
			unsent, _ := q.takeUnsent()
			q.putBack(unsent) // as when a session ends
			unsent, _ = q.takeUnsent()
			for _, r := range unsent {
				served++
				close(r.done)
			}
		}
	}
}

// The barrier returns promptly when its context ends, whatever is the matter.
func TestBarrierEnds(t *testing.T) {
	t.Parallel()
	r := newDeployment(t) // no publication: Run halts
	r.open()
	r.m = New(r.cfg, r.store)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.m.Barrier(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("barrier with an ended context: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if err := r.m.Barrier(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("barrier before Run: %v", err)
	}
	r.start()
	if h := r.awaitHalt(); h.Hint != "dinnerbell setup" {
		t.Errorf("halt is %v, want the hint dinnerbell setup", h)
	}
	if err := r.m.Barrier(t.Context()); !errors.Is(err, ErrStopped) {
		t.Errorf("barrier after Run: %v, want ErrStopped", err)
	}
}

// While apply is stalled the barrier waits, and ends with its context; and the
// walsender stays although wal_sender_timeout is short, and although more has
// come than the queue takes, so that nothing is read any more.
func TestBarrierAndTimeoutWhileApplyIsStalled(t *testing.T) {
	t.Parallel()
	stallApply(t, 2*time.Second, 3*time.Second)
}

func TestLongApplyStalledForAMinute(t *testing.T) {
	envtest.Long(t)
	stallApply(t, 5*time.Second, time.Minute)
}

func stallApply(t *testing.T, walSenderTimeout, stall time.Duration) {
	t.Helper()
	r := newDeployment(t).setup()
	r.Exec(fmt.Sprintf(`ALTER DATABASE %s SET wal_sender_timeout = '%dms'`, r.Name, walSenderTimeout.Milliseconds()))
	stalled, resume := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var end id.LSN // of the change that is not applied
	r.hooks.beforeApply = func(b *state.Batch) {
		if len(b.Changes) > 0 {
			once.Do(func() { end = b.End; close(stalled); <-resume })
		}
	}
	ended := make(chan error, 1)
	r.hooks.endedStream = func(err error) { ended <- err }
	r.start()
	r.barrier()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('c', 'r')`)
	await(t, stalled)
	const rows = 2 * maxQueueBytes / 200 // a change takes more
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || g, repeat('r', 50) FROM generate_series(1, $1::int) g`, rows)
	ctx, cancel := context.WithTimeout(t.Context(), stall)
	defer cancel()
	if err := r.m.Barrier(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("barrier while apply is stalled: %v", err)
	}
	if got := r.confirmed(); got >= end {
		t.Errorf("slot was acknowledged up to %s while the change that ends at %s was not applied", got, end)
	}
	select {
	case err := <-ended:
		t.Fatalf("the stream ended while apply was stalled: %v", err)
	default:
	}
	close(resume)
	r.same("r")
	if st := r.m.Status(); st.Reconnects != 0 || st.Subscriptions != rows+1 {
		t.Errorf("status is %+v, want no reconnect and %d subscriptions", st, rows+1)
	}
}
