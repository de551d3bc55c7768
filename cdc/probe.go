package cdc

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/state"
	"dinnerbell/state/id"
)

// positionProbe owns the SQL connection that serves the barrier in one session.
type positionProbe struct {
	sql    *pgx.Conn
	rounds *queryQueue
	pos    *appliedPosition
	epoch  uint64
	status *statusSender
	stats  *mirrorStats

	query   string // of the positions and the identity
	args    []any
	store   *state.Store  // whose rows have an identity
	changed chan struct{} // cap 1: to watch
}

// run answers rounds until ctx ends or the connection fails.
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

// answerQueries reads how far the server is and asks for a keepalive if we are not
// there yet. The keepalive comes behind all that was sent before it.
func (p *positionProbe) answerQueries(ctx context.Context, unsent []*positionQuery) error {
	asked := time.Now()
	target, flushed, identity, err := p.readTarget(ctx)
	if err != nil {
		return err
	}
	// What was read last is compared with what the rows are now: they only become
	// newer.
	stored, _ := p.store.Source()
	changed := stored.Catalog != identity
	if changed {
		wakeWaiter(p.changed)
	}
	if p.pos.load() < target {
		p.status.requestReply()
	}
	for _, r := range unsent {
		r.asked, r.target, r.unflushed, r.changed, r.epoch = asked, target, target > flushed, changed, p.epoch
		close(r.done)
	}
	return nil
}

// readTarget gives a position at or behind the end of everything that was committed
// before the call, how much the server had flushed, and the source's identity as
// all that shows that was committed before the call.
//
// The insert position covers commits with synchronous_commit = off, which are
// visible before they are flushed, and it is always the end of a record, while
// a flush position may lie inside of one.
func (p *positionProbe) readTarget(ctx context.Context) (target, flushed id.LSN, identity string, err error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	var insertText, flushText string
	if err := p.sql.QueryRow(ctx, p.query, p.args...).Scan(&insertText, &flushText, &identity); err != nil {
		return 0, 0, "", fmt.Errorf("read WAL position: %w", err)
	}
	insert, err := id.ParseLSN(insertText)
	if err != nil {
		return 0, 0, "", fmt.Errorf("read WAL position: %w", err)
	}
	flush, err := id.ParseLSN(flushText)
	if err != nil {
		return 0, 0, "", fmt.Errorf("read WAL position: %w", err)
	}
	p.stats.server.Store(uint64(flush))
	return skipPageHeader(insert, flush), flush, withTextVersion(identity), nil
}

// positionColumns come before the identity in the probe's query.
const positionColumns = `pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text,`

// WAL page headers: the first page of a segment has the long one.
// https://github.com/postgres/postgres/blob/master/src/include/access/xlog_internal.h
const (
	shortPageHeader = 24
	longPageHeader  = 40
	walPage         = 8 << 10
	minSegment      = 1 << 20
)

// skipPageHeader undoes a peculiarity of the insert position: at the start of a
// page it lies behind the page's header, where no record ends, so that nothing
// would ever reach it while the server idles (after pg_switch_wal() always).
func skipPageHeader(insert, flush id.LSN) id.LSN {
	switch {
	case insert == flush+shortPageHeader && flush%walPage == 0,
		insert == flush+longPageHeader && flush%minSegment == 0:
		return flush
	}
	return insert
}

// emitNudge commits a transaction that carries nothing but a logical message. It
// must be a transactional one: its commit flushes the WAL, and is sent at once.
func (p *positionProbe) emitNudge(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	if _, err := p.sql.Exec(ctx, `SELECT pg_logical_emit_message(true, 'dinnerbell', '')`); err != nil {
		if sqlState(err) == codeInsufficientPrivilege {
			h := newHalt("GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) TO "+pgx.Identifier{p.sql.Config().User}.Sanitize(), "the role in source.url may not emit logical messages: %v", err)
			h.heals = true
			return h
		}
		return fmt.Errorf("emit logical message: %w", err)
	}
	p.stats.nudges.Add(1)
	return nil
}

// ignoreCanceled drops the error that a query gives because ctx ended.
func ignoreCanceled(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // dropping it is what this is for
	}
	return err
}
