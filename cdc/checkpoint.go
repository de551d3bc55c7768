package cdc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"dinnerbell/state"
)

const (
	// maxHeldBack is how much WAL may wait for the next checkpoint; then one is
	// made for it.
	maxHeldBack = 32 << 20
	// keepEvery is how often the keeper looks at the clock. A checkpoint that
	// failed is tried again, and one whose rows stay the same is moved, about
	// as often; moved also when this many bytes would be acknowledged by it, a
	// segment of WAL: less Postgres cannot remove.
	keepEvery  = time.Second
	moveAtOnce = 16 << 20
	// warnEvery is how often a checkpoint that fails again and again is logged.
	warnEvery = time.Minute
	// checkpointPause is the least time between two checkpoints that are made
	// for the WAL's sake.
	checkpointPause = 2 * time.Second
)

// Checkpoint is how it stands with the checkpoints.
type Checkpoint struct {
	// ID, Made and LSN are of the newest one of the rows that are served; "" is none.
	ID   string
	Made time.Time
	LSN  state.LSN
	// HeldBack is how many bytes of WAL are durable here and wait for the next one
	// before they can be acknowledged.
	HeldBack int64
	// Error is why the last one failed, until one succeeds.
	Error string
}

// checkpointStats is written by the keeper.
type checkpointStats struct {
	mu  sync.Mutex // guards now
	now Checkpoint
}

func (s *checkpointStats) load() Checkpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *checkpointStats) newest(m *state.Manifest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now.ID, s.now.Made, s.now.LSN = m.ID, m.Made, m.EndLSN
}

func (s *checkpointStats) heldBack(bytes state.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now.HeldBack = int64(bytes)
}

// outcome notes how the last attempt ended.
func (s *checkpointStats) outcome(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now.Error = ""; err != nil {
		s.now.Error = err.Error()
	}
}

// keeper makes checkpoints while a session streams, and holds the
// acknowledgement back to the newest one: what Postgres still has is then all
// that a restore of it needs. It belongs to the syncer.
type keeper struct {
	every       time.Duration // 0: no checkpoints, and nothing is held back
	nextOffsets func() map[int32]int64
	store       *state.Store
	log         *slog.Logger
	stats       *checkpointStats
	// floor is what the slot was acknowledged up to when the session began. What
	// lies before it does not come again.
	floor state.LSN

	tried, moved, warned time.Time
}

func (m *Mirror) newKeeper(floor state.LSN) *keeper {
	return &keeper{
		every: m.cfg.CheckpointEvery, nextOffsets: m.cfg.NextOffsets,
		store: m.store, log: m.log, stats: &m.stats.checkpoint, floor: floor,
	}
}

// limit gives how far may be acknowledged of what is durable: never less than
// was before, since not every server refuses to go back.
func (k *keeper) limit(durable state.LSN) state.LSN {
	if k.every == 0 {
		return durable
	}
	at := k.covered()
	k.stats.heldBack(durable - min(durable, max(at, k.floor)))
	return max(k.floor, min(durable, at))
}

// covered is where the newest checkpoint stands from which the slot goes on; 0:
// there is none.
func (k *keeper) covered() state.LSN {
	m, ok := k.store.NewestCheckpoint()
	if !ok || m.EndLSN < k.floor {
		return 0
	}
	k.stats.newest(&m)
	return m.EndLSN
}

// cover moves the newest checkpoint on or makes another, if one of the two is
// due, and gives what may be acknowledged of what is durable. A checkpoint that
// fails is tried again later; it is an error only where the store is unusable.
//
// A server that shuts down waits until all is acknowledged. It need not wait
// for a checkpoint: it has ended the session's other connections before, which
// ends the session.
func (k *keeper) cover(durable state.LSN) (state.LSN, error) {
	if k.every == 0 {
		return durable, nil
	}
	if err := k.act(durable); err != nil {
		k.stats.outcome(err)
		if errors.Is(err, state.ErrCorrupt) || errors.Is(err, state.ErrClosed) {
			return 0, fmt.Errorf("acknowledge up to %s: %w", durable, err)
		}
		if time.Since(k.warned) >= warnEvery {
			k.warned = time.Now()
			k.log.Warn("no checkpoint; the source keeps its WAL until there is one", "error", err)
		}
	}
	return k.limit(durable), nil
}

// act does what is due.
func (k *keeper) act(durable state.LSN) error {
	now, at := time.Now(), k.covered()
	if at != 0 && at < durable && (now.Sub(k.moved) >= keepEvery || durable >= at+moveAtOnce) {
		k.moved = now
		to, err := k.store.MoveCheckpoint()
		if err != nil {
			return err
		}
		if to > at {
			at = to
			k.stats.outcome(nil)
		}
	}
	cause := k.due(now, at, durable)
	if cause == "" || now.Sub(k.tried) < keepEvery {
		return nil
	}
	k.tried = now
	var offsets map[int32]int64
	if k.nextOffsets != nil {
		offsets = k.nextOffsets()
	}
	m, err := k.store.Checkpoint(cause, offsets)
	if errors.Is(err, state.ErrNotWhole) {
		return nil // a large transaction is under way; nothing can be acknowledged before its end anyway
	}
	if err != nil {
		return err
	}
	k.stats.outcome(nil)
	level := slog.LevelInfo
	if cause == state.CauseWAL {
		level = slog.LevelDebug // under load they come every few seconds
	}
	k.log.Log(context.Background(), level, "checkpoint", "id", m.ID, "cause", string(m.Cause), "lsn", m.EndLSN.String(),
		"subscriptions", m.Subscriptions, "took", time.Since(now).Round(time.Millisecond))
	return nil
}

// due says why a checkpoint must be made now, "" if none must. at is where the
// newest stands, 0 without one.
func (k *keeper) due(now time.Time, at, durable state.LSN) state.Cause {
	since := now.Sub(k.store.LastTimed())
	switch {
	case at == 0 || since >= k.every || since < 0: // a clock that was set back
		return state.CauseTimed
	case durable >= at+maxHeldBack && now.Sub(k.tried) >= checkpointPause:
		return state.CauseWAL
	}
	return ""
}
