package stream

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

// Late subscribers and what operators do to the local state: restore, repair, trim.

// logLines collects the lines of the services that begin from now on.
func (w *lateDeployment) logLines() *logLines {
	lines := &logLines{}
	w.cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
	return lines
}

// openAgain opens the store of a directory.
func (w *lateDeployment) openAgain(dir string) *state.Store {
	w.Helper()
	s, err := state.Open(dir, w.stateOptions)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = s.Close() }) // a second Close does nothing
	return s
}

// restore puts a checkpoint in the place of the store, which no service uses.
func (w *lateDeployment) restore(dir string, m *state.Manifest) {
	w.Helper()
	if err := w.store.Close(); err != nil {
		w.Fatal(err)
	}
	if _, _, err := state.Restore(w.Context(), dir, m.ID, w.stateOptions); err != nil {
		w.Fatal(err)
	}
	w.store = w.openAgain(dir)
}

// A restored checkpoint is behind the lane: nothing is joined before the stream has
// brought it to the lane's position, and the lane reads on from there, without joining
// anything again. A checkpoint that is ahead of the lane has the changes between in its
// log, or says that it has not.
func TestLateSubscribersAfterARestore(t *testing.T) {
	t.Parallel()
	first := clients("0000", 10)
	w := newLateDeployment(t, 1, map[string][]string{"r1": first})
	lines := w.logLines()
	dir := t.TempDir()
	w.store = w.openAgain(dir)
	w.load(w.store, 1)
	checkpoint := func() *state.Manifest {
		t.Helper()
		m, err := w.store.Checkpoint(state.CauseAsked, nil)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	_, stop := w.start()
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	w.finished("c")
	w.insert("r1", "late 1")
	behind := checkpoint()
	w.insert("r1", "late 2")
	want := map[string][]string{"c": with(first, "late 1", "late 2")}
	w.expect(want)
	stop()

	w.restore(dir, behind)
	if at := w.store.EndLSN(); at != w.log[0].End {
		t.Fatalf("the restored rows are those of %s", at)
	}
	w.cfg.Committed = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	began := len(lines.with("joined again"))
	svc, stop := w.start()
	w.produce(0, encodeCampaign(w.campaign("d", "r1")))
	w.awaitOffset(0, 2)
	if s := svc.Status(); s.Lanes[0].WaitsForLSN != w.log[1].End || w.have("d") != 0 {
		t.Errorf("the lane waits for %s, and %d clients have a campaign that was joined without late 2", s.Lanes[0].WaitsForLSN, w.have("d"))
	}
	w.catchUp(w.store, 0)
	w.insert("r1", "late 3")
	want["c"], want["d"] = with(want["c"], "late 3"), with(want["c"], "late 3")
	w.expect(want)
	w.handled(svc)
	stop()

	w.insert("r1", "late 4")
	w.insert("r1", "for a moment")
	ahead := checkpoint()
	w.remove("r1", "for a moment")
	w.restore(dir, ahead)
	w.catchUp(w.store, 0)
	svc, stop = w.start()
	want["c"], want["d"] = with(want["c"], "late 4"), with(want["d"], "late 4")
	w.expect(want)
	if n := svc.Status().LateNotified; n != 2 {
		t.Errorf("%d are notified late, want 2: the log of the checkpoint has them", n)
	}
	if n := len(lines.with("joined again")); n != began {
		t.Errorf("campaigns were joined again %d times", n-began)
	}
	w.handled(svc)
	stop()

	// The checkpoint moves over transactions that leave its rows as they were. Their
	// entries are not in its log.
	w.insert("r1", "late 5")
	moved := checkpoint()
	row := id.PackRow("moved")
	w.commit(id.Change{Op: id.Insert, Row: row, Restaurant: packID(w, "r1"), Client: packID(w, "nobody")})
	w.commit(id.Change{Op: id.Delete, Row: row})
	if _, err := w.store.Sync(); err != nil {
		t.Fatal(err)
	}
	if at, err := w.store.MoveCheckpoint(); err != nil || at != w.store.EndLSN() {
		t.Fatalf("the checkpoint moved to %s, %v", at, err)
	}
	w.restore(dir, moved)
	svc, _ = w.start()
	want["c"], want["d"] = with(want["c"], "late 5"), with(want["d"], "late 5")
	w.expect(want)
	if n := svc.Status().LateNotified; n != 0 || len(lines.with("joined again", "does not reach back")) != 1 {
		t.Errorf("%d are notified late, and the campaigns are not joined again", n)
	}
}

// repair mends a row that the store lacks, as verify --repair does.
func (w *lateDeployment) repair(row id.RowID, restaurant, client string) {
	w.Helper()
	frozen, err := w.store.Freeze()
	if err != nil {
		w.Fatal(err)
	}
	defer func() { _ = frozen.Close() }() // it is only read
	if _, err := frozen.Tally(w.Context(), nil); err != nil {
		w.Fatal(err)
	}
	rows := frozen.Compare([]int{state.PartOf(row)}, nil)
	if err := rows.Add(row, packID(w, restaurant), packID(w, client)); err != nil {
		w.Fatal(err)
	}
	found, err := rows.Finish(w.Context())
	if err != nil || len(found) != 1 {
		w.Fatalf("%d rows differ, want 1: %v", len(found), err)
	}
	if n, err := frozen.Mend(found); err != nil || n != 1 {
		w.Fatalf("%d rows are mended: %v", n, err)
	}
}

// The client of a mended row gets the campaigns that it has missed, though no
// transaction tells of the row: also where one mend follows another with no transaction
// between, and after a restart.
func TestLateSubscribersAfterARepair(t *testing.T) {
	t.Parallel()
	first := clients("0000", 10)
	w := newLateDeployment(t, 1, map[string][]string{"r1": first})
	rows := []id.RowID{id.PackRow("1"), id.PackRow("2"), id.PackRow("3"), id.PackRow("4")} // of the first four clients
	var gone []id.Change
	for _, row := range rows {
		gone = append(gone, id.Change{Op: id.Delete, Row: row})
	}
	w.commit(gone...)
	svc, stop := w.start()
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	have := first[4:]
	w.expect(map[string][]string{"c": have})
	w.handled(svc)
	for i, row := range rows[:3] {
		w.repair(row, "r1", first[i])
		have = with(have, first[i])
		w.expect(map[string][]string{"c": have})
		w.finished("c")
	}
	w.insert("r1", "late")
	have = with(have, "late")
	w.expect(map[string][]string{"c": have})
	w.handled(svc)
	stop()
	w.repair(rows[3], "r1", first[3])
	w.start()
	w.expect(map[string][]string{"c": with(have, first[3])})
}

// Without state.history the log is kept for the lanes alone: the daemon trims it, and
// never beyond the lane that is furthest behind, whoever runs that lane.
func TestLogIsTrimmedBehindTheSlowestLane(t *testing.T) {
	t.Parallel()
	w := newLateDeployment(t, 2, map[string][]string{"r0": {"a"}, "r1": {"a"}})
	w.stateOptions.Log.Bytes = 1 << 20 // in segments of 64 KB
	w.store = w.openStore()
	w.cfg.TrimLog, w.trimEvery = true, 10*time.Millisecond
	lines := w.logLines()
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c0", "r0")))
	w.produce(1, encodeCampaign(w.campaign("c1", "r1")))
	w.finished("c0", "c1")
	fill := func(name string) {
		for i := range 20 {
			w.insert("elsewhere", clients(fmt.Sprintf("%s%02x", name, i), 200)...)
		}
	}
	fill("a")
	// Both lanes move on, and the log goes.
	w.insert("r0", "early")
	w.insert("r1", "early")
	want := map[string][]string{"c0": {"a", "early"}, "c1": {"a", "early"}}
	w.expect(want)
	began := w.log[0].End
	envtest.Until(t, patience, func() error {
		if floor, _ := w.store.LogFloor(); floor <= began {
			return fmt.Errorf("the log begins at %s: nothing is trimmed", floor)
		}
		return nil
	})

	// Lane 1 cannot move any more, lane 0 goes on.
	release := w.blockRows(`SELECT FROM dinnerbell.lane WHERE lane = 1 FOR UPDATE`)
	w.insert("r1", "late")
	w.awaitBlocked()
	fill("b")
	w.insert("r0", "late")
	envtest.Until(t, patience, func() error {
		if at := w.db.Int(`SELECT source_lsn FROM dinnerbell.lane WHERE lane = 0`); at < int64(w.store.EndLSN()) {
			return fmt.Errorf("lane 0 is at %d", at)
		}
		return nil
	})
	readers := svc.readers.Open()
	defer readers.Close()
	if err := svc.trimLogOnce(t.Context(), readers); err != nil {
		t.Fatal(err)
	}
	slowest := id.LSN(w.db.Int(`SELECT source_lsn FROM dinnerbell.lane WHERE lane = 1`))
	if floor, _ := w.store.LogFloor(); floor > slowest {
		t.Errorf("the log begins at %s, and lane 1 is at %s", floor, slowest)
	}
	release()
	want["c0"], want["c1"] = with(want["c0"], "late"), with(want["c1"], "late")
	w.expect(want)
	if again := lines.with("joined again", "does not reach back"); len(again) > 0 {
		t.Errorf("the log was trimmed too far: %s", again[0])
	}
	w.firstEpoch()
}
