package daemon

import (
	"context"
	"fmt"
	"sync"
	"time"

	"dinnerbell/internal/halt"
)

// Repeated damage means a bad disk, and each snapshot puts load on the source's
// database. So each snapshot within the window waits longer than the one before,
// and after the last the daemon halts.
const damageWindow = time.Hour

var damagePauses = []time.Duration{0, 10 * time.Second, time.Minute}

// damageHistory records when the store had to be set aside.
type damageHistory struct {
	mu    sync.Mutex
	total int64
	times []time.Time // within the window
}

// add records damage at now, and returns how long to wait before the store is
// rebuilt; false if it has been rebuilt too often.
func (d *damageHistory) add(now time.Time) (time.Duration, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.total++
	for len(d.times) > 0 && now.Sub(d.times[0]) >= damageWindow {
		d.times = d.times[1:]
	}
	d.times = append(d.times, now)
	if len(d.times) > len(damagePauses) {
		return 0, false
	}
	return damagePauses[len(d.times)-1], true
}

// count returns how often the store was damaged since the daemon started.
func (d *damageHistory) count() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.total
}

// replaceEngine closes an engine whose store is damaged and opens the directory
// again. Opening sets the damaged store aside and gives an empty one, into which
// the mirror takes a snapshot. HTTP goes on meanwhile.
func (s *supervisor) replaceEngine(ctx context.Context, old *Engine) (*Engine, error) {
	reason := old.Store.Damage()
	pause, ok := s.damage.add(time.Now())
	if err := old.close(); err != nil { // the store is damaged anyway
		s.Logger.Warn("closing the damaged local state failed", "error", err)
	}
	if !ok {
		return nil, s.damagedTooOften(reason)
	}
	if pause > 0 {
		s.Logger.Warn("local state was damaged again; waiting before it is rebuilt", "pause", pause)
	}
	select {
	case <-ctx.Done():
		return nil, nil //nolint:nilnil // asked to end: the mark in the directory stays until the next start
	case <-time.After(pause):
	}
	store, err := OpenState(s.Config, s.Logger, s.Build.Version, reason)
	if err != nil {
		return nil, err
	}
	return s.newEngine(store), nil
}

func (s *supervisor) damagedTooOften(reason error) error {
	dir := s.Config.State.Dir
	return &halt.Error{
		Part: halt.State,
		What: fmt.Sprintf("the local state in %s%s was damaged %d times within %s, last: %v", dir, filesystemOf(dir), len(damagePauses)+1, damageWindow, reason),
		Hint: "check that disk (kernel log, smartctl), or set state.dir to a folder on another one, and start the daemon again; nothing is lost with the local state",
	}
}
