package source

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

// A promotion begins a new timeline: the log is the same up to the point where
// the standby stopped following, and another one behind it. The local state at
// position D, taken from timeline A, is also that of a server on timeline B if
// and only if
//
//   - B's history leads through A (not merely through one of the same number),
//   - it left A at or behind D: everything that was applied here is there, and
//   - no part of a transaction is here without its end: whether B has the transaction is not known.
//
// Then a slot on B that is confirmed up to D or less sends everything that is
// not here, and nothing is missed or doubled. The store notes B before anything
// of B is applied, so that it never holds changes of B under the name of A.
// https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES

// Branch is a timeline that history left at End.
type Branch struct {
	Timeline int64
	End      id.LSN
}

// Lineage are the timelines before the present one, oldest first.
type Lineage []Branch

// parseLineage reads a timeline history file: "1<tab>0/3000148<tab>reason".
func parseLineage(content string) (Lineage, error) {
	var l Lineage
	number := 0
	for line := range strings.Lines(content) {
		number++
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		timeline, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil || len(fields) < 2 {
			return nil, fmt.Errorf("read timeline history, line %d: %w", number, pgoutput.ErrMalformed)
		}
		end, err := id.ParseLSN(fields[1])
		if err != nil {
			return nil, fmt.Errorf("read timeline history, line %d: %w", number, err)
		}
		l = append(l, Branch{Timeline: int64(timeline), End: end})
	}
	return l, nil
}

// String is the text that [state.Source] keeps.
func (l Lineage) String() string {
	var b strings.Builder
	for _, at := range l {
		fmt.Fprintf(&b, "%d %s;", at.Timeline, at.End)
	}
	return b.String()
}

// branchOf finds where history left the timeline of a source; ok is false if
// history never was on it.
func (l Lineage) branchOf(src state.Source) (end id.LSN, ok bool) {
	for i, at := range l {
		if at.Timeline == src.Timeline {
			return at.End, l[:i].String() == src.History
		}
	}
	return 0, false
}

// Divergence returns why the local state, at durable, is not a state of the present
// server; "" if it is. inTransaction: the local state holds a part of a transaction
// without its end.
func (l Lineage) Divergence(stored, now state.Source, durable id.LSN, inTransaction bool) string {
	if stored.Timeline == now.Timeline && stored.History == now.History {
		return ""
	}
	end, ok := l.branchOf(stored)
	switch {
	case !ok:
		return fmt.Sprintf("the server was restored from a backup, or is another branch of the same cluster (timeline %d after %q, was %d after %q)",
			now.Timeline, now.History, stored.Timeline, stored.History)
	case durable > end:
		return fmt.Sprintf("the server was promoted or restored (timeline %d) as of %s, without what was applied here up to %s", now.Timeline, end, durable)
	case inTransaction:
		return fmt.Sprintf("the server was promoted (timeline %d) while a transaction was applied here in part", now.Timeline)
	}
	return ""
}

// timelineHistory keeps the history that a session has read at its start.
type timelineHistory struct {
	mu       sync.Mutex // guards below
	timeline int64
	text     string
}

// historyOf returns the history before a timeline; "" where it is not known.
func (t *timelineHistory) historyOf(timeline int64) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timeline != timeline {
		return ""
	}
	return t.text
}

func (t *timelineHistory) set(timeline int64, text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timeline, t.text = timeline, text
}

// InspectWithTimeline is Inspect for a server that may be another one than last
// time: it reads the history of the server's timeline anew.
func (db *DB) InspectWithTimeline(ctx context.Context, sql *pgx.Conn) (*Catalog, Lineage, error) {
	cat, err := db.Inspect(ctx, sql, false)
	if err != nil {
		return nil, nil, err
	}
	var l Lineage
	if cat.Source.Timeline > 1 {
		if l, err = db.readLineage(ctx, cat); err != nil {
			return nil, nil, err
		}
	}
	cat.Source.History = l.String()
	db.history.set(cat.Source.Timeline, cat.Source.History)
	return cat, l, nil
}

// readLineage asks a walsender, because SQL has no function for it.
func (db *DB) readLineage(ctx context.Context, cat *Catalog) (Lineage, error) {
	repl, err := db.DialReplication(ctx)
	if err != nil {
		return nil, err
	}
	defer CloseConn(repl)
	if err := CheckSameServer(ctx, repl, cat); err != nil {
		return nil, err
	}
	return readHistory(ctx, repl, cat.Source.Timeline)
}

func readHistory(ctx context.Context, repl *pgconn.PgConn, timeline int64) (Lineage, error) {
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	file, err := pglogrepl.TimelineHistory(ctx, repl, int32(timeline))
	if err != nil {
		return nil, fmt.Errorf("read history of timeline %d: %w", timeline, err)
	}
	return parseLineage(string(file.Content))
}
