package cdc

import (
	"sync"
	"sync/atomic"
	"time"

	"dinnerbell/cdc/source"
	"dinnerbell/cdc/tablecopy"
	"dinnerbell/internal/halt"
	"dinnerbell/state/id"
)

// MirrorState is the activity of a mirror.
type MirrorState string

// The states of a mirror.
const (
	StateConnecting MirrorState = "connecting"  // also between two sessions
	StateSnapshot   MirrorState = "snapshot"    // the table is being copied
	StateCatchingUp MirrorState = "catching_up" // behind the position of the server at the session's start
	StateStreaming  MirrorState = "streaming"
	StateWaiting    MirrorState = "waiting"   // somebody else holds the slot, or a migration may be under way
	StateDiskFull   MirrorState = "disk_full" // changes wait for room on the local disk
	StateHalted     MirrorState = "halted"    // an operator is needed
)

// Status is a mirror's condition at one moment.
type Status struct {
	State      MirrorState
	AppliedLSN id.LSN // visible here
	DurableLSN id.LSN // on disk here, and acknowledged
	LagBytes   int64  // WAL that was still to be read when the server was last asked; -1: not known
	// Lag is the time since the moment up to which every commit is applied, 0 if no
	// commit is missing; -1: not known.
	Lag time.Duration
	// LagChanges is how many changes of rows are received and not applied yet; -1: not
	// known.
	LagChanges int64
	// FreshAt is the newest moment at which the server was asked for its position and
	// whose commits are all here. Zero: none in this process.
	FreshAt time.Time
	// SlotWALStatus is empty, and SlotKnown false, where the slot was not looked at
	// lately. A slot that was found lost stays lost.
	SlotWALStatus string
	SlotKnown     bool
	SafeWALSize   int64 // bytes until the slot may be lost; -1: no limit
	SlotHeldBytes int64 // WAL that the server keeps for the slot; -1: not known
	Subscriptions int64
	FreshnessMS   float64            // duration of the last wait at the barrier
	Snapshot      tablecopy.Progress // of the last copy, or the one under way
	Snapshots     int64              // begun since the start
	Reconnects    int64
	Failovers     int64 // promoted servers that were followed without a snapshot
	Nudges        int64 // transactions that barriers needed
	BadIDs        int64 // values that cannot be ids and were taken as NULL
	NullIDs       int64
	LastError     string
	RebuildReason string // of the last snapshot
	Halted        *halt.Error
	Since         time.Duration // in State
	Work          *WorkStatus   // a rebuild or verification beside the stream
	Checkpoint    CheckpointStatus
}

// mirrorStats are the numbers behind Status. Each has one writer or is a counter.
type mirrorStats struct {
	freshness   atomic.Int64 // ns
	lag         sourceLag
	safeWALSize atomic.Int64
	slotHeld    atomic.Int64
	keepSize    atomic.Int64 // max_slot_wal_keep_size in bytes; -1: no limit
	copy        tablecopy.Counter
	snapshots   atomic.Int64
	reconnects  atomic.Int64
	failovers   atomic.Int64
	nudges      atomic.Int64
	badIDs      atomic.Int64
	nullIDs     atomic.Int64
	checkpoint  checkpointStats

	mu         sync.Mutex // guards below
	state      MirrorState
	since      time.Time
	walStatus  string
	slotLooked time.Time
	lastError  string
	beforeLock MirrorState // the state before the wait for the slot's lock; its holder alone uses it
	full       string      // why the mirror waits for room on the disk; "": it does not wait
	reason     string
	halted     *halt.Error
}

// setState moves to a state, remembers since when, and returns the state before.
func (s *mirrorStats) setState(to MirrorState) (from MirrorState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from = s.state
	if from != to {
		s.state, s.since = to, time.Now()
	}
	return from
}

// LockHeld implements LockObserver.
func (s *mirrorStats) LockHeld(by *source.SlotHeldError) {
	if from := s.setState(StateWaiting); s.beforeLock == "" {
		s.beforeLock = from
	}
	s.setError(by)
}

// LockWaitEnded implements LockObserver.
func (s *mirrorStats) LockWaitEnded() {
	s.setState(s.beforeLock)
	s.beforeLock = ""
}

// setDiskFull notes why the mirror waits for room on the disk; "": it does not
// wait. It returns whether the wait begins or ends with that.
func (s *mirrorStats) setDiskFull(full string) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed = (s.full == "") != (full == "")
	s.full = full
	if full != "" {
		s.lastError = full
	}
	return changed
}

// setError keeps the last error, also after it has passed: an operator asks later
// why the mirror reconnected.
func (s *mirrorStats) setError(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastError = err.Error()
}

// setHalted notes the halt with which Run returns.
func (s *mirrorStats) setHalted(h *halt.Error) {
	s.setState(StateHalted)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.halted, s.lastError = h, h.Text()
}

// setRebuildReason keeps why the snapshot under way, or the last one, was needed.
func (s *mirrorStats) setRebuildReason(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reason = reason
}

// beginSnapshot counts a snapshot and resets the progress of the last one.
func (s *mirrorStats) beginSnapshot() {
	s.setState(StateSnapshot)
	s.snapshots.Add(1)
	s.copy.Reset()
}

// Status returns the mirror's condition. It is cheap and waits for nothing.
func (m *Mirror) Status() Status {
	s := &m.stats
	st := Status{
		AppliedLSN:    max(m.pos.load(), m.store.EndLSN()),
		DurableLSN:    m.store.DurableLSN(),
		SafeWALSize:   s.safeWALSize.Load(),
		SlotHeldBytes: s.slotHeld.Load(),
		Subscriptions: m.store.Subscriptions(),
		FreshnessMS:   float64(s.freshness.Load()) / float64(time.Millisecond),
		Snapshot:      s.copy.ProgressAt(time.Now()),
		Snapshots:     s.snapshots.Load(),
		Reconnects:    s.reconnects.Load(),
		Failovers:     s.failovers.Load(),
		Nudges:        s.nudges.Load(),
		BadIDs:        s.badIDs.Load(),
		NullIDs:       s.nullIDs.Load(),
		Work:          m.work.currentStatus(),
		Checkpoint:    s.checkpoint.current(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.State, st.LastError = s.state, s.lastError
	if st.SlotKnown = !s.slotLooked.IsZero() && time.Since(s.slotLooked) <= lagUnknownAfter; st.SlotKnown || s.walStatus == source.SlotLost {
		st.SlotWALStatus = s.walStatus
	}
	connected := s.state == StateStreaming || s.state == StateCatchingUp
	g := s.lag.readLag(st.AppliedLSN, connected, time.Now())
	st.LagBytes, st.Lag, st.FreshAt, st.LagChanges = g.bytes, g.behind, g.fresh, -1
	if connected {
		st.LagChanges = s.lag.changes.Load()
	}
	if s.full != "" && s.state != StateHalted {
		st.State = StateDiskFull
	}
	st.RebuildReason, st.Halted, st.Since = s.reason, s.halted, time.Since(s.since)
	return st
}
