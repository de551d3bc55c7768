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
	// maxUncovered is how much WAL may wait while no checkpoint can be made.
	// Durable changes are then acknowledged without one. A server with less than
	// the advised max_slot_wal_keep_size lets less wait.
	maxUncovered = source.KeepSizeAdvised / keepSizeShare
	// keepEvery is how often the keeper looks at the clock. A failed checkpoint is
	// tried again, and a checkpoint whose rows stay the same is moved, about as
	// often. It is moved also when moveAtOnce bytes would be acknowledged by that,
	// a segment of WAL: Postgres cannot remove less.
	keepEvery  = time.Second
	moveAtOnce = 16 << 20
	// warnEvery is how often a checkpoint that fails again and again is logged.
	warnEvery = time.Minute
	// checkpointPause is the least time between two checkpoints that are made
	// for the WAL's sake.
	checkpointPause = 2 * time.Second
	// keepSizeShare of max_slot_wal_keep_size is the most that checkpoints hold
	// back. The rest is for the parts that nobody can hurry: whole segments, and
	// the server's restart_lsn, which follows the acknowledgement at the server's
	// next checkpoint.
	keepSizeShare = 4
)

// CheckpointStatus is the condition of the checkpoints at one moment.
type CheckpointStatus struct {
	// ID, Made and LSN are those of the newest checkpoint of the served rows; ID
	// "": there is no checkpoint.
	ID   string
	Made time.Time
	LSN  id.LSN
	// HeldBack is how many bytes of WAL are durable here and wait for the next
	// checkpoint before they can be acknowledged.
	HeldBack int64
	// Error is why the last checkpoint failed, until one succeeds.
	Error string
}

// checkpointStats are the numbers behind CheckpointStatus. The keeper writes them.
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
// acknowledgement back to the newest one: then Postgres still has all WAL that a
// restore of that checkpoint needs. The customer's database goes first, though:
// where no checkpoint can be made, or max_slot_wal_keep_size is small, the keeper
// lets the slot pass the newest checkpoint, and a restore of it leads to a
// snapshot. The syncer's goroutine alone uses it.
type checkpointKeeper struct {
	every       time.Duration // 0: no checkpoints, and nothing is held back
	nextOffsets func() map[int32]int64
	store       *state.Store
	log         *slog.Logger
	stats       *checkpointStats
	// keepSize returns the server's max_slot_wal_keep_size in bytes; -1: no limit.
	keepSize func() int64
	// floor is the acknowledged position when the session began, or a later one
	// past the newest checkpoint. WAL before it does not come again.
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

// heldBackBounds returns how much WAL may wait before a checkpoint is made for it,
// and how much before it is acknowledged without one.
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

// limitAcknowledgement returns the position up to which durable changes may be
// acknowledged: never less than before, since not every server refuses to go back.
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

// newestCheckpointLSN returns the position of the newest checkpoint; 0: there is no
// checkpoint.
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

// advanceAcknowledgement moves the newest checkpoint on or makes another, if one of
// the two is due, and returns the position up to which durable changes may be
// acknowledged. A failed checkpoint is tried again later; it is an error only where
// the store is unusable.
//
// A server that shuts down waits until all is acknowledged. It need not wait for a
// checkpoint: it has ended the session's other connections before, which ends the
// session.
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
			k.log.Warn("cannot make a checkpoint; the source keeps its WAL until one succeeds, or until as much waits as is allowed", "error", err)
		}
	}
	return k.limitAcknowledgement(durable), nil
}

// moveOrMake moves the newest checkpoint or makes another, whichever is due. Where
// the newest cannot be moved, another is made as if its rows had changed.
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

// moveNewest lets the newest checkpoint stand for the durable state, if that is
// due.
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
		return nil // a large transaction is under way; nothing can be acknowledged before its end in any case
	}
	if err != nil {
		return err
	}
	k.stats.noteOutcome(nil)
	level := slog.LevelInfo
	if cause == state.CauseWAL {
		level = slog.LevelDebug // under load they come every few seconds
	}
	k.log.Log(context.Background(), level, "checkpoint", "checkpoint", m.ID, "cause", string(m.Cause), "lsn", m.EndLSN.String(),
		"subscriptions", m.Subscriptions, "took", time.Since(now).Round(time.Millisecond))
	return nil
}

// dueCause returns why a checkpoint must be made now; "" if none is due.
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
