package cdc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"dinnerbell/cdc/source"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

const (
	// maxHeldBack is how much WAL may wait for the next checkpoint; then one is
	// made for it.
	maxHeldBack = 32 << 20
	// maxUncovered is how much may wait while no checkpoint can be made. What is
	// durable is then acknowledged without one. A server with less than the advised
	// max_slot_wal_keep_size lets less wait.
	maxUncovered = source.KeepSizeAdvised / keepSizeShare
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
	// keepSizeShare of max_slot_wal_keep_size is the most that checkpoints hold
	// back. The rest is for what nobody can hurry: whole segments, and the server's
	// restart_lsn, which follows the acknowledgement at its next checkpoint.
	keepSizeShare = 4
)

// CheckpointStatus is how it stands with the checkpoints.
type CheckpointStatus struct {
	// ID, Made and LSN are of the newest one of the rows that are served; "" is none.
	ID   string
	Made time.Time
	LSN  id.LSN
	// HeldBack is how many bytes of WAL are durable here and wait for the next one
	// before they can be acknowledged.
	HeldBack int64
	// Error is why the last one failed, until one succeeds.
	Error string
}

// checkpointStats is written by the keeper.
type checkpointStats struct {
	mu  sync.Mutex // guards now
	now CheckpointStatus
}

func (s *checkpointStats) current() CheckpointStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *checkpointStats) noteNewest(m *state.Manifest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now.ID, s.now.Made, s.now.LSN = m.ID, m.Made, m.EndLSN
}

func (s *checkpointStats) noteHeldBack(bytes id.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now.HeldBack = int64(bytes)
}

// noteOutcome notes how the last attempt ended.
func (s *checkpointStats) noteOutcome(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now.Error = ""; err != nil {
		s.now.Error = err.Error()
	}
}

// checkpointKeeper makes checkpoints while a session streams, and holds the
// acknowledgement back to the newest one: what Postgres still has is then all
// that a restore of it needs. The customer's database goes first, though: where
// no checkpoint can be made, or max_slot_wal_keep_size is small, the keeper lets
// the slot pass the newest checkpoint, and a restore of it leads to a snapshot.
// It belongs to the syncer.
type checkpointKeeper struct {
	every       time.Duration // 0: no checkpoints, and nothing is held back
	nextOffsets func() map[int32]int64
	store       *state.Store
	log         *slog.Logger
	stats       *checkpointStats
	// KeepSize is the server's max_slot_wal_keep_size in bytes; -1: no limit.
	keepSize func() int64
	// floor is what the slot was acknowledged up to when the session began, or
	// past the newest checkpoint since. What lies before it does not come again.
	floor id.LSN

	failed                       error // why the last checkpoint could not be made
	tried, moved, warned, passed time.Time
}

func newCheckpointKeeper(m *Mirror, floor id.LSN) *checkpointKeeper {
	return &checkpointKeeper{
		every: m.cfg.CheckpointEvery, nextOffsets: m.cfg.NextOffsets,
		store: m.store, log: m.log, stats: &m.stats.checkpoint, keepSize: m.stats.keepSize.Load, floor: floor,
	}
}

// heldBackBounds gives how much WAL may wait before a checkpoint is made for it, and how
// much before it is acknowledged without one.
func (k *checkpointKeeper) heldBackBounds() (soft, hard id.LSN) {
	hard = math.MaxInt64
	if k.failed != nil {
		hard = maxUncovered
	}
	if keep := k.keepSize(); keep >= 0 {
		hard = min(hard, id.LSN(keep/keepSizeShare))
	}
	return min(maxHeldBack, hard/2), hard
}

// limitAcknowledgement gives how far may be acknowledged of what is durable: never less than
// was before, since not every server refuses to go back.
func (k *checkpointKeeper) limitAcknowledgement(durable id.LSN) id.LSN {
	if k.every == 0 {
		return durable
	}
	to := max(k.floor, min(durable, k.newestCheckpointLSN()))
	held := durable - min(durable, to)
	if _, hard := k.heldBackBounds(); held > hard {
		if time.Since(k.passed) >= warnEvery {
			k.log.Warn("acknowledged WAL that the newest checkpoint needs, so that the source does not have to keep it; a restore of that checkpoint leads to a new snapshot",
				"bytes", int64(held), "max_slot_wal_keep_size", k.keepSize(), "checkpoint_error", k.failed)
			k.passed = time.Now()
		}
		k.floor, to, held = durable, durable, 0
	}
	k.stats.noteHeldBack(held)
	return to
}

// newestCheckpointLSN is where the newest checkpoint stands; 0: there is none.
func (k *checkpointKeeper) newestCheckpointLSN() id.LSN {
	m, ok := k.store.NewestCheckpoint()
	if !ok {
		return 0
	}
	if m.EndLSN >= k.floor { // else the slot does not go on from it
		k.stats.noteNewest(&m)
	}
	return m.EndLSN
}

// advanceAcknowledgement moves the newest checkpoint on or makes another, if one of the two is
// due, and gives what may be acknowledged of what is durable. A checkpoint that
// fails is tried again later; it is an error only where the store is unusable.
//
// A server that shuts down waits until all is acknowledged. It need not wait
// for a checkpoint: it has ended the session's other connections before, which
// ends the session.
func (k *checkpointKeeper) advanceAcknowledgement(durable id.LSN) (id.LSN, error) {
	if k.every == 0 {
		return durable, nil
	}
	if err := k.moveOrMake(durable); err != nil {
		k.stats.noteOutcome(err)
		if errors.Is(err, state.ErrCorrupt) || errors.Is(err, state.ErrClosed) {
			return 0, fmt.Errorf("acknowledge up to %s: %w", durable, err)
		}
		if time.Since(k.warned) >= warnEvery {
			k.warned = time.Now()
			k.log.Warn("no checkpoint; the source keeps its WAL until there is one, or as much waits as may", "error", err)
		}
	}
	return k.limitAcknowledgement(durable), nil
}

// moveOrMake does what is due. Where the newest checkpoint cannot be moved, another is
// made as if its rows had changed.
func (k *checkpointKeeper) moveOrMake(durable id.LSN) error {
	now := time.Now()
	err := k.moveNewest(now, durable)
	cause := k.dueCause(now, durable)
	if cause == "" || now.Sub(k.tried) < keepEvery {
		return err
	}
	k.tried = now
	k.failed = k.makeCheckpoint(now, cause)
	return k.failed
}

// moveNewest lets the newest checkpoint stand for what is durable, if that is due.
func (k *checkpointKeeper) moveNewest(now time.Time, durable id.LSN) error {
	at := k.newestCheckpointLSN()
	soft, _ := k.heldBackBounds()
	if at == 0 || at >= durable || now.Sub(k.moved) < keepEvery && durable < at+min(moveAtOnce, soft/2) {
		return nil
	}
	k.moved = now
	to, err := k.store.MoveCheckpoint()
	if err != nil {
		return err
	}
	if to > at {
		k.failed = nil
		k.stats.noteOutcome(nil)
	}
	return nil
}

// makeCheckpoint makes a checkpoint.
func (k *checkpointKeeper) makeCheckpoint(now time.Time, cause state.Cause) error {
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
	k.stats.noteOutcome(nil)
	level := slog.LevelInfo
	if cause == state.CauseWAL {
		level = slog.LevelDebug // under load they come every few seconds
	}
	k.log.Log(context.Background(), level, "checkpoint", "id", m.ID, "cause", string(m.Cause), "lsn", m.EndLSN.String(),
		"subscriptions", m.Subscriptions, "took", time.Since(now).Round(time.Millisecond))
	return nil
}

// dueCause says why a checkpoint must be made now, "" if none must.
func (k *checkpointKeeper) dueCause(now time.Time, durable id.LSN) state.Cause {
	at, since := k.newestCheckpointLSN(), now.Sub(k.store.LastTimed())
	soft, _ := k.heldBackBounds()
	switch {
	case at == 0 || since >= k.every || since < 0: // a clock that was set back
		return state.CauseTimed
	case (at < k.floor || durable > at+soft) && now.Sub(k.tried) >= checkpointPause:
		return state.CauseWAL
	}
	return ""
}
