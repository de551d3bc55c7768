package cdc

import (
	"context"
	"errors"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"dinnerbell/state"
	"dinnerbell/state/id"
)

// Below the reserve a transaction without changes is stored all the same, so that
// it pins no WAL; one with changes waits, and is applied when there is room.
func TestApplierOnAFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	// More than there is: the disk is full until the store is opened again.
	store, err := state.Open(filepath.Join(dir, "state"), state.Options{ReserveBytes: int64(fs.Blocks) * fs.Bsize * 2})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	waited := errors.New("it waits")
	pos := &appliedPosition{}
	a := &applier{store: store, queue: newGroupQueue(), pos: pos, gate: newStoreGate(store, pos), dirty: make(chan struct{}, 1),
		awaitRoom: func(_ context.Context, _ int64, why error) error {
			if !errors.Is(why, state.ErrDiskFull) {
				t.Errorf("it waits because of %v", why)
			}
			return waited
		}, noteNoRoom: func(string) {}, noteApplied: func([]state.TransactionEnd) {}}
	a.pos.openSession(0)
	if err := a.applyGroup(t.Context(), &changeGroup{batch: state.Batch{End: 10}, observed: 10}); err != nil {
		t.Errorf("a transaction without changes: %v", err)
	}
	if a.pos.load() != 10 || store.EndLSN() != 10 || a.holdsGate {
		t.Errorf("observed %s, stored %s, gate held %v; want 0/A, 0/A, false", a.pos.load(), store.EndLSN(), a.holdsGate)
	}
	change := id.Change{Op: id.Delete, Row: id.PackRow("1")}
	err = a.applyGroup(t.Context(), &changeGroup{batch: state.Batch{End: 20, Changes: []id.Change{change}}, observed: 20})
	if !errors.Is(err, waited) || a.pos.load() != 10 || a.holdsGate {
		t.Errorf("a change: %v, observed %s, gate held %v; want it to wait at 0/A with the gate open", err, a.pos.load(), a.holdsGate)
	}
}

// Below the reserve a quiet table pins no WAL, whatever others write.
func TestQuietTableBelowTheReserve(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().keeping(time.Hour)
	var err error
	if r.store, err = state.Open(r.dir, state.Options{Logger: r.cfg.Logger, ReserveBytes: -1}); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'r')`)
	r.same("r")
	r.await("checkpoint", func(st Status) bool { return st.Checkpoint.ID != "" })
	r.close()
	if r.store, err = state.Open(r.dir, state.Options{Logger: r.cfg.Logger, ReserveBytes: 1 << 50}); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.fill(4)
	r.awaitConfirmed(r.lsn("pg_current_wal_flush_lsn"))
	if st := r.m.Status(); st.State == StateDiskFull {
		t.Errorf("state is %s although nothing waits", st.State)
	}
}
