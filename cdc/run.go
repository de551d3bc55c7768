package cdc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/cdc/source"
	"dinnerbell/cdc/tablecopy"
	"dinnerbell/internal/halt"
	"dinnerbell/state"
)

// Pauses between sessions: short at first, for a server that restarts; with jitter,
// for a fleet that lost the same server.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 10 * time.Second
	// healing is how long a violated precondition may last before it is a halt;
	// healingPause is the longest pause between two sessions by then.
	healing      = time.Minute
	healingPause = time.Second
)

// Mirror follows one table. Make it with New and call Run once.
type Mirror struct {
	cfg             Config
	db              *source.DB
	invalid         error // of the configuration; then db is nil
	log             *slog.Logger
	store           *state.Store    // written by the applier, or by a snapshot, never by both
	pos             appliedPosition // outlives sessions: callers of Barrier wait across them
	stats           mirrorStats
	gate            *storeGate // held while a transaction is applied
	work            workSlot
	lock            *source.SlotLock // made by Run and Rebuild
	catalogsChanged chan struct{}    // cap 1: the probe read other catalogs than those of the rows
	renewal         renewal
	barrier         freshnessBarrier
	disk            diskWaiter

	// Tests, which have no large tables, set these: see the constants of these
	// names.
	compareAtOnce int64
	compareRounds int

	stopped  chan struct{} // closed when Run returns
	stop     sync.Once
	admitted chan struct{} // closed once there is no sign of a second daemon
	admit    sync.Once

	// forcedSnapshot is why the next session begins with a snapshot, whatever the
	// catalogs show. Run's goroutine alone uses it.
	forcedSnapshot string
	// startChecked: the checks of a start have passed. Run's goroutine alone uses
	// it.
	startChecked bool
	// violatedSince is the time since when a precondition is violated; zero: all
	// hold. Run's goroutine alone uses it.
	violatedSince time.Time
	// stuck notes where the walsender fails, and since when. Run's goroutine alone
	// uses it.
	stuck walsenderFailure
	// loadBytes is the least room that the next snapshot needs, as the last one has
	// shown. Run's goroutine alone uses it.
	loadBytes int64

	hooks hooks
}

// hooks are seams for tests; all are nil otherwise.
type hooks struct {
	beforeApply    func(*state.Batch)
	slotMade       func() // for a snapshot, which is not read yet
	endedStream    func(error)
	locked         func()        // the first connection of a copy has its lock
	copied         func()        // rows of a copy have gone to their sink
	catalogChecked func()        // the catalogs were compared
	paused         func()        // the stream stands for a rebuild
	heldBackWarn   int64         // instead of heldBackWarn
	secondAlive    time.Duration // instead of secondAlive
	healing        time.Duration // instead of healing
	slowSlot       time.Duration // instead of slowSlot
}

// New makes a mirror of cfg's table into store. Nothing happens before Run.
func New(cfg Config, store *state.Store) *Mirror {
	cfg = cfg.withDefaults()
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	cfg.Config = cfg.ForInstance(store.Instance())
	m := &Mirror{cfg: cfg, log: cfg.Logger, store: store, stopped: make(chan struct{}), admitted: make(chan struct{}),
		catalogsChanged: make(chan struct{}, 1),
		compareAtOnce:   compareAtOnce, compareRounds: compareRounds}
	m.db, m.invalid = source.Open(cfg.Config)
	m.gate = newStoreGate(store, &m.pos)
	m.renewal = renewal{m: m, wanted: make(chan string, 1)}
	m.disk = diskWaiter{store: store, log: cfg.Logger, stats: &m.stats}
	m.barrier = freshnessBarrier{
		freshness: cfg.Freshness, maxStaleness: cfg.MaxStaleness,
		store: store, pos: &m.pos, stats: &m.stats, stopped: m.stopped,
	}
	m.barrier.queries.wake = make(chan struct{}, 1)
	m.stats.setState(StateConnecting)
	m.stats.safeWALSize.Store(-1)
	m.stats.keepSize.Store(-1)
	return m
}

// Admitted returns a channel that closes once the mirror holds its slot, or cannot
// know because the source does not answer or halts it. The channel stays open while
// another daemon has the slot. Callers wait for it before they take over work of
// another daemon.
func (m *Mirror) Admitted() <-chan struct{} { return m.admitted }

func (m *Mirror) admitService() { m.admit.Do(func() { close(m.admitted) }) }

// Run keeps the store in step with the source until ctx ends: then it returns nil.
// It takes a snapshot when there is none, or when the stream is not the one that
// the store knows, and reconnects by itself. It returns a *halt.Error when an
// operator is needed, and other errors only when the store is unusable. Every
// goroutine that it started has ended when it returns.
func (m *Mirror) Run(ctx context.Context) error {
	defer m.stop.Do(func() { close(m.stopped) })
	defer m.work.forbidWork(ErrStopped)
	if m.invalid != nil {
		return m.recordHalt(m.invalid)
	}
	m.lock = source.NewSlotLock(m.db, &m.stats, m.hooks.secondAlive)
	defer m.barrier.startAsking(ctx)()
	defer m.lock.StartHeartbeat(ctx)()
	defer m.renewal.start(ctx)()
	pause := newBackoff()
	for {
		began := time.Now()
		caughtUp, err := m.runSession(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if caughtUp && time.Since(began) > maxPause { // a shorter session may fail at once, over and over
			pause.Reset()
			m.violatedSince = time.Time{}
		}
		due := pause.NextBackOff()
		if err := m.classifySessionError(ctx, err, due); err != nil {
			return err
		}
		if !m.violatedSince.IsZero() {
			due = min(due, healingPause)
		}
		if err != nil && !source.Sleep(ctx, due) {
			return nil
		}
		if m.violatedSince.IsZero() {
			m.stats.setState(StateConnecting)
		}
	}
}

// newBackoff returns growing pauses, each between half and one and a half of the
// nominal one.
func newBackoff() *backoff.ExponentialBackOff {
	p := backoff.NewExponentialBackOff()
	p.InitialInterval, p.MaxInterval = firstPause, maxPause
	return p
}

// classifySessionError decides how the mirror goes on after the end of a session;
// the error that it returns ends Run. The next session begins after the pause.
func (m *Mirror) classifySessionError(ctx context.Context, err error, pause time.Duration) error {
	if err == nil {
		return nil
	}
	err = m.db.ExplainError(err)
	m.stats.reconnects.Add(1)
	m.stats.setError(err)
	if !m.lock.SecondSeen() {
		m.admitService()
	}
	if h, ok := errors.AsType[*source.HaltError](err); ok {
		if h.Distrust {
			m.dropWorthlessSlot(ctx)
		}
		if m.waitForMigration(h) {
			return nil
		}
		return m.recordHalt(h)
	}
	if errors.Is(err, state.ErrCorrupt) || errors.Is(err, state.ErrClosed) {
		return m.recordHalt(err)
	}
	if r, ok := errors.AsType[*pgoutput.NewSnapshotError](err); ok {
		m.forcedSnapshot = r.Reason
		return nil
	}
	if why := m.stuck.giveUpReason(err, m.pos.load(), cmp.Or(m.hooks.healing, healing)); why != "" {
		m.forcedSnapshot = why
	}
	if held, ok := errors.AsType[*source.SlotHeldError](err); ok {
		m.stats.setState(StateWaiting)
		m.log.Warn("waiting for the replication slot", "slot", held.Slot, "pid", held.PID,
			"application_name", held.App, "role", held.Role, "client_addr", held.Address)
		return nil
	}
	if errors.Is(err, tablecopy.ErrRewritten) {
		m.log.Warn("the snapshot begins again after a pause", "reason", err)
		return nil
	}
	if isUnreachable(err) {
		m.log.Warn("cannot reach the source, connecting again", "error", err, "again_in", pause.Round(time.Millisecond))
	} else {
		m.log.Warn("cannot follow the source, trying again", "error", err, "again_in", pause.Round(time.Millisecond))
	}
	return nil
}

// waitForMigration reports whether a halt can wait. A complete snapshot shows that
// the mirror has worked before; the violation may then be the middle of a
// migration: a primary key that is dropped and made again, a REVOKE and a GRANT.
func (m *Mirror) waitForMigration(h *source.HaltError) bool {
	if _, complete := m.store.Source(); !complete || !h.Heals {
		return false
	}
	if m.violatedSince.IsZero() {
		m.violatedSince = time.Now()
	}
	left := cmp.Or(m.hooks.healing, healing) - time.Since(m.violatedSince)
	if left <= 0 {
		return false
	}
	m.stats.setState(StateWaiting)
	m.log.Warn("the source cannot be mirrored as it is now; waiting in case that a migration is under way", "what", h.Err.What, "to_mend", h.Err.Hint, "left", left.Round(time.Second))
	return true
}

// recordHalt puts an error that ends Run into Status.
func (m *Mirror) recordHalt(err error) error {
	if h, ok := errors.AsType[*halt.Error](err); ok {
		m.stats.setHalted(h)
		return h
	}
	m.stats.setHalted(&halt.Error{Part: halt.Source, What: err.Error()})
	return err
}

// dropWorthlessSlot drops a slot with which no stream can begin any more: changes
// may have passed it unpublished, or its snapshot has failed. Without the slot, the
// next start takes a snapshot even if everything looks right again by then.
func (m *Mirror) dropWorthlessSlot(ctx context.Context) {
	sql, err := m.db.DialSQL(ctx)
	if err == nil {
		defer source.CloseConn(sql.PgConn())
		err = m.db.DropSlot(ctx, sql)
	}
	if err != nil {
		m.log.Error("could not drop the slot, which is worthless and keeps WAL; if the daemon does not start again, drop it by hand",
			"statement", "SELECT pg_drop_replication_slot('"+m.cfg.Slot+"')", "error", err)
	}
}

// Rebuild takes a new snapshot and does not follow the stream afterwards. No Run
// may be under way. progress, if not nil, is called about every 100 ms with the
// rows so far and Postgres' estimate of all.
func (m *Mirror) Rebuild(ctx context.Context, progress func(rows, total int64)) error {
	if m.invalid != nil {
		return m.invalid
	}
	m.lock = source.NewSlotLock(m.db, &m.stats, m.hooks.secondAlive)
	sql, err := m.db.DialSQL(ctx)
	if err != nil {
		return err
	}
	defer source.CloseConn(sql.PgConn())
	if _, _, err := m.db.InspectWithTimeline(ctx, sql); err != nil {
		return err
	}
	defer m.lock.StartHeartbeat(ctx)()
	if err := m.lock.Hold(ctx, sql); err != nil {
		return err
	}
	ended := make(chan struct{})
	var reporter sync.WaitGroup
	if progress != nil {
		reporter.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-ended:
					progress(m.stats.copy.Counts())
					return
				case <-tick.C:
					progress(m.stats.copy.Counts())
				}
			}
		})
	}
	m.stats.setRebuildReason("asked for by the operator")
	err = (&tableSnapshot{m: m, sql: sql}).replaceRows(ctx)
	close(ended)
	reporter.Wait()
	return err
}

// servedSource returns the source of the served rows, with which a rebuild or
// verification begins.
func (m *Mirror) servedSource() (state.Source, error) {
	src, ok := m.store.Source()
	if !ok {
		return src, fmt.Errorf("%w: there is no complete snapshot yet; the daemon takes one by itself", ErrBusy)
	}
	return src, nil
}
