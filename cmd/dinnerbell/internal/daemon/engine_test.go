package daemon

import (
	"errors"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/internal/halt"
	"dinnerbell/state"
	"dinnerbell/stream"
	"dinnerbell/stream/campaign"
)

// Damage that comes back waits longer each time and then asks for an operator;
// damage of long ago does not count.
func TestDamageThatComesBack(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var d damageHistory
	for i, want := range damagePauses {
		now = now.Add(time.Minute)
		if pause, ok := d.add(now); !ok || pause != want {
			t.Errorf("damage %d: wait %s, %v; want %s", i+1, pause, ok, want)
		}
	}
	if _, ok := d.add(now.Add(time.Minute)); ok {
		t.Error("it goes on for ever")
	}
	if pause, ok := d.add(now.Add(2 * damageWindow)); !ok || pause != damagePauses[0] {
		t.Errorf("after a quiet time: wait %s, %v", pause, ok)
	}
	if d.count() != int64(len(damagePauses))+2 {
		t.Errorf("%d in all", d.count())
	}
}

// The counts of an engine survive its replacement.
func TestCountsOutliveTheStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := config.Defaults()
	cfg.State.Dir = dir
	var store [2]*state.Store
	for i := range store {
		var err error
		if store[i], err = state.Open(filepath.Join(dir, strconv.Itoa(i)), state.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	d := newDaemon(Options{Config: cfg, Logger: slog.New(slog.DiscardHandler)}, store[0], nil)
	first := d.currentEngine()
	first.before = carriedCounts{stream: stream.Counts{Decided: 7, Dead: 1, Letters: campaign.ClassCounts{1}}, badIDs: 2, failovers: 3}
	second := d.newEngine(store[1])
	if second.before != first.before {
		t.Errorf("the second engine begins at %+v, want %+v", second.before, first.before)
	}
	if r := d.statusReport(); r.Counters.NotificationsDecided != 7 || r.Counters.CampaignsDead != 1 || r.Counters.DeadLetters[campaign.ReasonClasses[0]] != 1 || r.Counters.BadIDs != 2 || r.Source.Failovers != 3 {
		t.Errorf("report: %+v, %d failovers", r.Counters, r.Source.Failovers)
	}
	if err := errors.Join(first.close(), second.close()); err != nil {
		t.Error(err)
	}
}

// The halt names the folder, its disk and what to do, and exits with 3.
func TestDamagedTooOftenNamesTheDisk(t *testing.T) {
	t.Parallel()
	cfg := config.Defaults()
	cfg.State.Dir = t.TempDir()
	err := (&supervisor{Options: Options{Config: cfg}}).damagedTooOften(errors.New("checksum mismatch"))
	for _, want := range []string{cfg.State.Dir, "checksum mismatch", "mounted on /", "state.dir"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if _, halted := errors.AsType[*halt.Error](err); !halted {
		t.Errorf("%v is no halt", err)
	}
}
