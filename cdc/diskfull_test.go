package cdc

import (
	"context"
	"errors"
	"path/filepath"
	"syscall"
	"testing"

	"dinnerbell/state"
)

// While the disk is full, a transaction without changes is observed and not
// stored, so that barriers pass; one with changes waits, and is applied when
// there is room.
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
	a := &applier{store: store, queue: newQueue(), pos: &position{}, gate: newGate(), dirty: make(chan struct{}, 1),
		awaitRoom: func(_ context.Context, _ int64, why error) error {
			if !errors.Is(why, state.ErrDiskFull) {
				t.Errorf("it waits because of %v", why)
			}
			return waited
		}}
	a.pos.open(0)
	if err := a.apply(t.Context(), &group{batch: state.Batch{End: 10}, observed: 10}); err != nil {
		t.Errorf("a transaction without changes: %v", err)
	}
	if a.pos.load() != 10 || store.EndLSN() != 0 || a.inside {
		t.Errorf("observed %s, stored %s, gate held %v; want 0/A, 0/0, false", a.pos.load(), store.EndLSN(), a.inside)
	}
	change := state.Change{Op: state.Delete, Row: state.PackRowID("1")}
	err = a.apply(t.Context(), &group{batch: state.Batch{End: 20, Changes: []state.Change{change}}, observed: 20})
	if !errors.Is(err, waited) || a.pos.load() != 10 || a.inside {
		t.Errorf("a change: %v, observed %s, gate held %v; want it to wait at 0/A with the gate open", err, a.pos.load(), a.inside)
	}
}
