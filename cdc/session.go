package cdc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/cdc/replication"
	"dinnerbell/cdc/source"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

// watchEvery is the time between two looks at the slot and the catalogs.
const watchEvery = 3 * time.Second

// heldBackWarn is how much WAL the server may keep for a slot before the log warns:
// enough to matter on a small disk, more than a restart costs.
const heldBackWarn = 1 << 30

// runSession is one attempt. It connects, inspects the source, and then either
// takes a snapshot (and returns nil: the next session streams) or streams until
// something fails. caughtUp reports that the local state came to the position that
// the server had at the session's start.
func (m *Mirror) runSession(ctx context.Context) (caughtUp bool, err error) {
	sql, err := m.db.DialSQL(ctx)
	if err != nil {
		return false, err
	}
	defer func() { source.CloseConn(sql.PgConn()) }()
	asked := time.Now()
	cat, past, err := m.db.InspectWithTimeline(ctx, sql)
	if err != nil {
		return false, err
	}
	m.stats.lag.noteLook(cat.WALEnd, asked)
	if err := m.lock.Hold(ctx, sql); err != nil {
		return false, ignoreCanceled(ctx, err)
	}
	m.admitService()
	if !m.startChecked {
		if err := m.db.CheckStart(ctx, sql, cat); err != nil {
			return false, err
		}
		m.startChecked = true
	}
	slot, err := m.db.ReadSlot(ctx, sql)
	if err != nil {
		return false, err
	}
	m.recordSlot(slot, cat.WALEnd)
	// A transaction that a former session left behind in parts comes again from its
	// first change. Sync makes the applied changes durable: then there is one
	// position.
	m.store.Rewind()
	durable, err := m.store.Sync()
	if err != nil {
		return false, fmt.Errorf("sync state: %w", err)
	}
	stored, complete := m.store.Source()
	v, reason := snapshotReason(stored, complete, durable, m.gate.InTransaction(), cat, past, slot)
	if m.forcedSnapshot != "" && v != source.StreamLost {
		v, reason = source.StreamLost, m.forcedSnapshot
	}
	if v != source.RowsCurrent && complete && m.cfg.HaltOnLost {
		return false, source.NewHalt("dinnerbell rebuild --offline", "the subscriptions need a new snapshot, and source.on_lost is halt: %s", reason)
	}
	if v == source.StreamLost {
		return false, m.takeSnapshot(ctx, sql, reason)
	}
	if err := m.followPromotion(stored, cat.Source, durable); err != nil {
		return false, err
	}
	if err := m.db.ReleaseSlot(ctx, sql, slot); err != nil {
		return false, err
	}
	return m.streamChanges(ctx, sql, cat, slot.Confirmed, durable)
}

// takeSnapshot takes a new snapshot. After one that did not fit it waits for room.
func (m *Mirror) takeSnapshot(ctx context.Context, sql *pgx.Conn, reason string) error {
	m.log.Info("taking a snapshot of the subscriptions", "reason", reason)
	m.stats.setRebuildReason(reason)
	err := (&tableSnapshot{m: m, sql: sql}).replaceRows(ctx)
	if errors.Is(err, state.ErrDiskFull) {
		return m.awaitRoomForSnapshot(ctx, sql, err)
	}
	if err == nil {
		m.forcedSnapshot = ""
	}
	return err
}

// awaitRoomForSnapshot waits after a snapshot that did not fit, until there is more
// room than the snapshot had written by then. It drops the slot first, which would
// only keep WAL on the source for a snapshot that has to be taken anew.
func (m *Mirror) awaitRoomForSnapshot(ctx context.Context, sql *pgx.Conn, why error) error {
	if err := m.db.DropSlot(ctx, sql); err != nil {
		return errors.Join(why, err)
	}
	if err := m.disk.awaitRoom(ctx, m.loadBytes, why); err != nil {
		return ignoreCanceled(ctx, err)
	}
	return nil
}

// followPromotion notes the timeline of a server that was promoted, and goes on
// with its slot.
func (m *Mirror) followPromotion(stored, now state.Source, durable id.LSN) error {
	if stored.Timeline == now.Timeline {
		return nil
	}
	now.Catalog = stored.Catalog // a difference is judged as while streaming
	if err := m.store.Follow(now); err != nil {
		return fmt.Errorf("follow promoted server: %w", err)
	}
	m.stats.failovers.Add(1)
	m.log.Info("the server was promoted; going on where the stream stood", "timeline", now.Timeline,
		"was", stored.Timeline, "history", now.History, "lsn", durable.String())
	return nil
}

// streamChanges follows the slot, which is acknowledged up to confirmed, from durable on.
func (m *Mirror) streamChanges(ctx context.Context, sql *pgx.Conn, cat *source.Catalog, confirmed, durable id.LSN) (caughtUp bool, err error) {
	asker, err := m.db.DialSameServer(ctx, cat)
	if err != nil {
		return false, err
	}
	defer source.CloseConn(asker.PgConn())
	repl, err := m.db.DialReplication(ctx)
	if err != nil {
		return false, err
	}
	defer source.CloseConn(repl)
	if err := source.CheckSameServer(ctx, repl, cat); err != nil {
		return false, err
	}
	every, err := replication.ReadWALSenderTimeout(ctx, repl)
	if err != nil {
		return false, err
	}
	out, err := replication.Start(ctx, repl, m.cfg.Slot, m.cfg.QuotedPublication(), durable)
	if err != nil {
		if source.SQLState(err) == source.CodeObjectInUse {
			return false, m.db.ExplainSlotInUse(ctx, sql, err)
		}
		return false, err
	}
	m.log.Info("streaming", "slot", m.cfg.Slot, "lsn", durable.String(), "server_lsn", cat.WALEnd.String())
	m.stats.setState(StateCatchingUp)
	m.pos.openSession(m.store.EndLSN())
	err = m.runStreaming(ctx, &streamingSession{sql: sql, asker: asker, out: out, cat: cat, confirmed: confirmed, durable: durable, every: replication.StatusInterval(every)})
	m.pos.closeSession()
	m.barrier.settled.notifyAll()
	if m.hooks.endedStream != nil {
		m.hooks.endedStream(err)
	}
	return m.pos.load() >= cat.WALEnd, err
}

// streamingSession is a session with its connections, while it streams.
type streamingSession struct {
	sql   *pgx.Conn           // owned by watchCatalogs: catalogs and the slot
	asker *pgx.Conn           // owned by the probe: it must never wait for catalogs
	out   *replication.Stream // read by the receiver, written by the status sender
	cat   *source.Catalog     // as of the session's start
	// confirmed is the acknowledged position before the session, durable the
	// position at which the stream begins.
	confirmed, durable id.LSN
	every              time.Duration // between two status messages
}

// runStreaming runs the session's goroutines until one fails or ctx ends. At the
// end it syncs once more and acknowledges that, so that the next start has nothing
// to repeat.
func (m *Mirror) runStreaming(ctx context.Context, l *streamingSession) error {
	defer m.stats.setDiskFull("")
	keeper := newCheckpointKeeper(m, l.confirmed)
	status := replication.NewStatusSender(l.out, keeper.limitAcknowledgement(l.durable))
	queue := newGroupQueue()
	queue.waiting = &m.stats.lag.changes
	queue.waiting.Store(0) // the server sends again what a broken session left in its queue
	dirty := make(chan struct{}, 1)
	asm := pgoutput.NewAssembler(l.cat.Source.TableOID, l.cat.ColumnNames(), m.store.EndLSN())
	recv := &walReceiver{in: replication.NewReader(l.out, asm, status), queue: queue, status: status, stats: &m.stats}
	app := &applier{store: m.store, queue: queue, pos: &m.pos, gate: m.gate, dirty: dirty, awaitRoom: m.disk.awaitRoom, noteNoRoom: m.disk.noteNoRoom, noteApplied: m.noteApplied, beforeApply: m.hooks.beforeApply}
	ask := &positionProbe{sql: l.asker, rounds: &m.barrier.queries, pos: &m.pos, epoch: m.pos.currentEpoch(), status: status, stats: &m.stats,
		db: m.db, query: m.db.NewPositionQuery(l.cat.Version), store: m.store, changed: m.catalogsChanged}

	// The first goroutine that fails ends all. Reading alone does not notice the
	// end of the context; a read deadline in the past makes it return, and leaves
	// the connection good for the last acknowledgement.
	g, gctx := errgroup.WithContext(ctx)
	interrupt := context.AfterFunc(gctx, l.out.Interrupt)
	defer interrupt()
	g.Go(func() error { return recv.run(gctx) })
	g.Go(func() error { return app.run(gctx) })
	g.Go(func() error { return syncLoop(gctx, m.store, dirty, keeper, status) })
	g.Go(func() error { return status.Run(gctx, l.every) })
	g.Go(func() error { return ask.run(gctx) })
	g.Go(func() error { return m.watchCatalogs(gctx, l) })
	wakeWaiter(m.barrier.queries.wake) // callers of Barrier may have waited for a session
	err := g.Wait()
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = nil
	}
	if durable, serr := m.store.Sync(); serr == nil {
		status.NoteDurable(keeper.limitAcknowledgement(durable))
		_ = status.Send(false) // the connection may be gone
	}
	return err
}

// watchCatalogs waits until the session has caught up. From then on it looks at the
// slot and the catalogs from time to time, and when the probe read other catalogs.
func (m *Mirror) watchCatalogs(ctx context.Context, l *streamingSession) error {
	if err := m.awaitCaughtUp(ctx, l); err != nil {
		return ignoreCanceled(ctx, err)
	}
	m.stats.setState(StateStreaming)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		if err := m.checkCatalog(ctx, l); err != nil {
			return ignoreCanceled(ctx, err)
		}
		if m.hooks.catalogChecked != nil {
			m.hooks.catalogChecked()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-m.catalogsChanged:
		}
	}
}

// awaitCaughtUp waits until the local state is at the position that the server had at
// the session's start. Meanwhile it looks how far the server has come, for the status.
func (m *Mirror) awaitCaughtUp(ctx context.Context, l *streamingSession) error {
	epoch, query := m.pos.currentEpoch(), m.db.NewPositionQuery(l.cat.Version)
	end := l.cat.WALEnd
	look := time.NewTicker(watchEvery)
	defer look.Stop()
	for {
		at, moved, ok := m.pos.watchEpoch(epoch)
		if !ok || at >= end {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
			m.lookAtServer(ctx, l.sql, query)
			if m.pos.load() == at { // end may lie inside of a record
				m.barrier.queries.requestNudge()
			}
		}
	}
}

// lookAtServer notes the server's position and the slot for the status. An error is left
// to the statements that the session needs.
func (m *Mirror) lookAtServer(ctx context.Context, sql *pgx.Conn, query source.PositionQuery) {
	asked := time.Now()
	at, err := query.Read(ctx, sql)
	if err != nil {
		return
	}
	m.stats.lag.noteLook(at.Flush, asked)
	if slot, err := m.db.ReadSlot(ctx, sql); err == nil {
		m.recordSlot(slot, at.Flush)
	}
}

// noteApplied notes the transactions of a group that is visible now.
func (m *Mirror) noteApplied(ends []state.TransactionEnd) {
	if delay, ok := m.stats.lag.noteApplied(ends); ok && m.cfg.Delays != nil {
		m.cfg.Delays.Observe(delay.Seconds())
	}
}

// checkCatalog compares the catalogs with those of the rows, and has the rows
// rebuilt if need be. A *NewSnapshotError reports that the stream cannot go on.
func (m *Mirror) checkCatalog(ctx context.Context, l *streamingSession) error {
	asked := time.Now()
	cat, err := m.db.InspectStreaming(ctx, l.sql)
	if err != nil {
		return err
	}
	m.stats.lag.noteLook(cat.WALEnd, asked)
	if err := m.lock.Hold(ctx, l.sql); err != nil {
		return err
	}
	slot, err := m.db.ReadSlot(ctx, l.sql)
	if err != nil {
		return err
	}
	m.recordSlot(slot, cat.WALEnd)
	stored, complete := m.store.Source()
	v, reason := source.CompareSources(stored, cat.Source)
	switch {
	case !complete || v == source.StreamLost || v == source.RowsOutdated && m.cfg.HaltOnLost:
		return &pgoutput.NewSnapshotError{Reason: reason}
	case v == source.RowsOutdated:
		return m.renewal.requestRenewal(reason)
	case stored != cat.Source:
		// The store refuses it in the middle of a transaction; the next look comes.
		err := m.store.Follow(cat.Source)
		if errors.Is(err, state.ErrTorn) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("note catalogs: %w", err)
		}
	}
	m.barrier.settled.notifyAll()
	return nil
}

// recordSlot notes the slot's row of pg_replication_slots for the status, and warns
// when the slot gets into danger: once each time, so that the log is not filled.
func (m *Mirror) recordSlot(slot source.SlotStatus, walEnd id.LSN) {
	held := int64(-1) // not known: the slot has no position yet, or none any more
	if slot.Restart != 0 {
		held = max(0, int64(walEnd)-int64(slot.Restart))
	}
	s := &m.stats
	s.safeWALSize.Store(slot.SafeWALSize)
	s.keepSize.Store(slot.KeepSize)
	before := s.slotHeld.Swap(held)
	s.mu.Lock()
	was := s.walStatus
	s.walStatus, s.slotLooked = slot.WALStatus, time.Now()
	s.mu.Unlock()

	much := cmp.Or(m.hooks.heldBackWarn, heldBackWarn)
	attrs := []any{"slot", m.cfg.Slot, "wal_status", slot.WALStatus, "held_bytes", held, "safe_wal_size", slot.SafeWALSize}
	switch {
	case slot.WALStatus == source.SlotUnreserved && was != source.SlotUnreserved:
		m.log.Warn("the slot may lose its WAL at the server's next checkpoint: it is behind by more than max_slot_wal_keep_size", attrs...)
	case slot.WALStatus == source.SlotLost && was != source.SlotLost:
		m.log.Error("the slot is lost", append(attrs, "reason", slot.LossReason())...)
	case held >= much && before < much:
		m.log.Warn("the server keeps much WAL for the slot: nobody has read it for a while, or slowly", attrs...)
	}
}
