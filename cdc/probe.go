package cdc

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/cdc/replication"
	"dinnerbell/cdc/source"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

// positionProbe owns the SQL connection that serves the barrier in one session.
type positionProbe struct {
	sql    *pgx.Conn
	rounds *queryQueue
	pos    *appliedPosition
	epoch  uint64
	status *replication.StatusSender
	stats  *mirrorStats

	db      *source.DB
	query   source.PositionQuery
	store   *state.Store  // whose rows have an identity
	changed chan struct{} // cap 1: to watch
}

// run answers queries until ctx ends or the connection fails.
func (p *positionProbe) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.rounds.wake:
		}
		unsent, nudge := p.rounds.takeUnsent()
		if len(unsent) > 0 {
			if err := p.answerQueries(ctx, unsent); err != nil {
				p.rounds.putBack(unsent)
				return ignoreCanceled(ctx, err)
			}
		}
		if nudge {
			if err := p.emitNudge(ctx); err != nil {
				return ignoreCanceled(ctx, err)
			}
		}
	}
}

// answerQueries reads how far the server is, and asks for a keepalive if the local
// state is not there yet. The keepalive comes behind everything that was sent
// before it.
func (p *positionProbe) answerQueries(ctx context.Context, unsent []*positionQuery) error {
	asked := time.Now()
	target, flushed, identity, err := p.readTarget(ctx)
	if err != nil {
		return err
	}
	// The identity that was read is compared with that of the present rows, which
	// only become newer.
	stored, _ := p.store.Source()
	changed := stored.Catalog != identity
	if changed {
		wakeWaiter(p.changed)
	}
	if p.pos.load() < target {
		p.status.RequestReply()
	}
	for _, r := range unsent {
		r.asked, r.target, r.unflushed, r.changed, r.epoch = asked, target, target > flushed, changed, p.epoch
		close(r.done)
	}
	return nil
}

// readTarget returns a position at or behind the end of everything that was
// committed before the call, how much the server had flushed, and the source's
// identity, which covers everything that was committed before the call.
//
// The insert position covers commits with synchronous_commit = off, which are
// visible before they are flushed, and it is always the end of a record, while a
// flush position may lie inside of one.
func (p *positionProbe) readTarget(ctx context.Context) (target, flushed id.LSN, identity string, err error) {
	asked := time.Now()
	at, err := p.query.Read(ctx, p.sql)
	if err != nil {
		return 0, 0, "", err
	}
	p.stats.lag.noteLook(at.Flush, asked)
	return skipPageHeader(at.Insert, at.Flush), at.Flush, at.Identity, nil
}

// WAL page headers: the first page of a segment has the long one.
// https://github.com/postgres/postgres/blob/master/src/include/access/xlog_internal.h
const (
	shortPageHeader = 24
	longPageHeader  = 40
	walPage         = 8 << 10
	minSegment      = 1 << 20
)

// skipPageHeader corrects the insert position at the start of a page: there it lies
// behind the page's header, where no record ends, so that nothing would ever reach
// it while the server idles (always so after pg_switch_wal()).
func skipPageHeader(insert, flush id.LSN) id.LSN {
	switch {
	case insert == flush+shortPageHeader && flush%walPage == 0,
		insert == flush+longPageHeader && flush%minSegment == 0:
		return flush
	}
	return insert
}

// emitNudge commits a transaction of the daemon's own, which moves the stream.
func (p *positionProbe) emitNudge(ctx context.Context) error {
	if err := p.db.EmitMessage(ctx, p.sql); err != nil {
		return err
	}
	p.stats.nudges.Add(1)
	return nil
}

// ignoreCanceled drops an error that came because ctx ended.
func ignoreCanceled(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // this function drops it on purpose
	}
	return err
}
