package cdc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"dinnerbell/cdc/source"
	"dinnerbell/internal/halt"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

func TestMain(m *testing.M) { envtest.Main(m) }

// patience is the limit for things that happen at once on an idle machine.
const patience = envtest.Patience

// await waits for a signal.
func await(t *testing.T, signal <-chan struct{}) {
	t.Helper()
	select {
	case <-signal:
	case <-time.After(patience):
		t.Fatal("the awaited did not happen")
	}
}

// deployment is one mirror of one test's database.
type deployment struct {
	*envtest.DB
	role  string // connection string for the mirror
	t     *testing.T
	dir   string
	cfg   Config
	store *state.Store
	m     *Mirror
	hooks hooks

	stop context.CancelFunc
	done chan struct{}
	err  error // of Run, once done
}

// newDeployment has an empty store and nothing running. The mirror's role is the one
// of scripts/role.sql; all that a test does by SQL, and setup, the owner does.
func newDeployment(t *testing.T) *deployment {
	t.Helper()
	return newDeploymentOn(t, envtest.Database(t))
}

// newDeploymentOn is newDeployment on a database of a server of the test's own.
func newDeploymentOn(t *testing.T, db *envtest.DB) *deployment {
	t.Helper()
	r := &deployment{DB: db, t: t, dir: t.TempDir()}
	r.role = r.RoleURL("source.url")
	// For tables that a test puts in the place of the first.
	r.Exec(fmt.Sprintf(`ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO role_%s; ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO role_%[1]s`, r.Name))
	r.cfg = Config{Config: source.Config{
		URL:    func() (string, error) { return r.role, nil },
		Schema: "public", Table: "subscribers_restaurants",
		KeyColumns: []string{"id"}, ClientColumn: "client_id", RestaurantColumn: "restaurant_id",
		Publication: "dinnerbell", Slot: "slot_" + r.Name, ApplicationName: "dinnerbell-" + r.Name,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}}
	r.hooks.healing = time.Nanosecond // a test that waits for a halt does not wait for a migration
	t.Cleanup(r.close)
	return r
}

func (r *deployment) setup() *deployment {
	r.t.Helper()
	if _, err := source.Setup(r.t.Context(), r.owner().Config); err != nil {
		r.t.Fatal(err)
	}
	return r
}

// source opens the database as the configuration has it now.
func (r *deployment) source() *source.DB {
	r.t.Helper()
	db, err := source.Open(r.cfg.Config)
	if err != nil {
		r.t.Fatal(err)
	}
	return db
}

// owner is the configuration with the role that owns the tables.
func (r *deployment) owner() Config {
	cfg := r.cfg
	cfg.URL = func() (string, error) { return r.URL, nil }
	return cfg
}

// open opens the store in the deployment's folder.
func (r *deployment) open() {
	r.t.Helper()
	store, err := state.Open(r.dir, state.Options{Logger: r.cfg.Logger, ReserveBytes: -1})
	if err != nil {
		r.t.Fatal(err)
	}
	r.store = store
}

// start runs a mirror.
func (r *deployment) start() *deployment {
	r.t.Helper()
	if r.store == nil {
		r.open()
	}
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.Background())
	r.m = New(r.cfg, r.store)
	r.m.hooks = r.hooks
	r.done = make(chan struct{})
	go func() {
		defer close(r.done)
		r.err = r.m.Run(ctx)
	}()
	return r
}

// halt ends the mirror and gives what Run returned.
func (r *deployment) halt() error {
	if r.m == nil {
		return nil
	}
	r.stop()
	<-r.done
	r.m = nil
	return r.err
}

// close ends everything.
func (r *deployment) close() {
	_ = r.halt()
	if r.store != nil {
		if err := r.store.Close(); err != nil {
			r.t.Errorf("close state: %v", err)
		}
		r.store = nil
	}
}

// barrier passes the barrier.
func (r *deployment) barrier() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if err := r.m.Barrier(ctx); err != nil {
		r.t.Fatalf("barrier: %v; %+v", err, r.m.Status())
	}
}

// await polls until the mirror's status is as wanted.
func (r *deployment) await(what string, ok func(Status) bool) {
	r.t.Helper()
	envtest.Until(r.t, patience, func() error {
		if st := r.m.Status(); !ok(st) {
			return fmt.Errorf("no %s yet: %+v", what, st)
		}
		return nil
	})
}

// awaitHalt waits for Run to return a *halt.Error.
func (r *deployment) awaitHalt() *halt.Error {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		r.t.Fatalf("no halt; %+v", r.m.Status())
	}
	h, ok := errors.AsType[*halt.Error](r.err)
	if !ok {
		r.t.Fatalf("Run returned %v, want a *halt.Error", r.err)
	}
	return h
}

type pair struct{ restaurant, client string }

// truth reads the distinct subscriptions and the number of rows by SQL.
func (r *deployment) truth() (pairs map[pair]bool, rows int64) {
	r.t.Helper()
	pairs = map[pair]bool{}
	q, err := r.Pool.Query(r.t.Context(), fmt.Sprintf(
		`SELECT %s::text, %s::text FROM %s WHERE %[1]s IS NOT NULL AND %[2]s IS NOT NULL`,
		quote(r.cfg.RestaurantColumn), quote(r.cfg.ClientColumn), r.cfg.QuotedTable()))
	if err != nil {
		r.t.Fatal(err)
	}
	defer q.Close()
	for q.Next() {
		var p pair
		if err := q.Scan(&p.restaurant, &p.client); err != nil {
			r.t.Fatal(err)
		}
		if p.restaurant != "" && p.client != "" {
			pairs[p] = true
			rows++
		}
	}
	if err := q.Err(); err != nil {
		r.t.Fatal(err)
	}
	return pairs, rows
}

func quote(name string) string { return `"` + name + `"` }

// clients reads a restaurant's clients from the store.
func (r *deployment) clients(restaurant string) []string {
	r.t.Helper()
	scan, err := r.store.NewScan()
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = scan.Close() }()
	packed, err := id.Pack(restaurant)
	if err != nil {
		r.t.Fatal(err)
	}
	var list id.List
	var clients []string
	var after id.ID
	for done := false; !done; {
		list.Reset()
		after, done, err = scan.Undelivered(&list, "", packed, after, 1000)
		if err != nil {
			r.t.Fatal(err)
		}
		for i := range list.Len() {
			clients = append(clients, string(list.At(i).AppendText(nil))) // a copy: the list is reused
		}
	}
	return clients
}

// same compares the store with SQL, after passing the barrier. The restaurants
// named are looked at although SQL may no longer know them.
func (r *deployment) same(restaurants ...string) {
	r.t.Helper()
	want, rows := r.truth()
	r.barrier()
	if got := r.store.Subscriptions(); got != rows {
		r.t.Errorf("store has %d subscriptions, SQL %d", got, rows)
	}
	byRestaurant := map[string][]string{}
	for _, name := range restaurants {
		byRestaurant[name] = nil
	}
	for p := range want {
		byRestaurant[p.restaurant] = append(byRestaurant[p.restaurant], p.client)
	}
	for _, restaurant := range slices.Sorted(maps.Keys(byRestaurant)) {
		wantClients := byRestaurant[restaurant]
		slices.Sort(wantClients)
		got := r.clients(restaurant)
		slices.Sort(got)
		if !slices.Equal(got, wantClients) {
			r.t.Errorf("restaurant %q has %d clients, want %d; the first are %.200s, want %.200s", restaurant, len(got), len(wantClients),
				fmt.Sprint(got[:min(10, len(got))]), fmt.Sprint(wantClients[:min(10, len(wantClients))]))
		}
	}
}

// confirmed is the slot's acknowledged position.
func (r *deployment) confirmed() id.LSN {
	r.t.Helper()
	var text string
	err := r.Pool.QueryRow(r.t.Context(), `SELECT coalesce(confirmed_flush_lsn, '0/0')::text FROM pg_replication_slots WHERE slot_name = $1`, r.cfg.Slot).Scan(&text)
	if err != nil {
		r.t.Fatal(err)
	}
	lsn, err := id.ParseLSN(text)
	if err != nil {
		r.t.Fatal(err)
	}
	return lsn
}

// lsn reads one of the server's positions.
func (r *deployment) lsn(function string) id.LSN {
	r.t.Helper()
	var text string
	if err := r.Pool.QueryRow(r.t.Context(), "SELECT "+function+"()::text").Scan(&text); err != nil {
		r.t.Fatal(err)
	}
	lsn, err := id.ParseLSN(text)
	if err != nil {
		r.t.Fatal(err)
	}
	return lsn
}
