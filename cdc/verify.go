package cdc

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/cdc/source"
	"dinnerbell/cdc/tablecopy"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

const (
	// compareAtOnce is about how many rows are compared one by one at a time, in
	// memory: some 50 MB with UUID ids.
	compareAtOnce = 1 << 17
	// compareRounds is how often that is done. A state with errors in more places
	// than that should be rebuilt rather than mended.
	compareRounds = 4
	// mendAtOnce is how many rows are mended in one write; the stream waits for it.
	mendAtOnce = 4096
)

// Verified is the result of a verification.
type Verified struct {
	At   id.LSN // the position at which table and local rows were compared
	Rows int64  // in the table, at that position
	// Differences is how many rows the store holds otherwise than the table, among
	// those that were compared one by one.
	Differences int64
	// Mended is how many of the differing rows are right now.
	Mended int64
	// Written is how many differing rows were left alone because they were written
	// meanwhile: verify again.
	Written int64
	// Unchecked is about how many rows lie in differing parts that were not compared
	// one by one, because there were too many.
	Unchecked int64
	// Uncompared is how many rows were written with a value that Postgres did not
	// send.
	Uncompared int64
	// Miscounted: the number of subscriptions, or the fingerprint of all, was wrong.
	Miscounted bool
}

// Sound reports whether all rows are right by now.
func (v *Verified) Sound() bool {
	return v.Differences == v.Mended && v.Unchecked == 0 && !v.Miscounted
}

// Verify compares the local rows with the table, both as of one position, while
// everything goes on. It passes each differing row to found, and mends it
// afterwards if repair is set. It returns [ErrBusy] if it cannot begin now.
//
// The table is read under a snapshot of its own; the changes that committed between
// that snapshot and the position of the local rows come from a side stream. Memory
// does not depend on the number of differences.
func (m *Mirror) Verify(ctx context.Context, repair bool, found func(*state.Difference) error) (done Verified, err error) {
	ctx, w, err := m.work.beginWork(ctx, WorkVerify)
	if err != nil {
		return done, err
	}
	defer func() { err = m.work.endWork(ctx, w, err) }()
	v := &verification{m: m, w: w, repair: repair, found: found}
	defer func() { err = errors.Join(err, v.closeBoth()) }()
	for range maxAttempts {
		err = errTooMuch
		if err := v.freezeBoth(ctx); err != nil {
			return done, err
		}
		if !v.over.isUseless() {
			if err = v.compareSums(ctx); !errors.Is(err, tablecopy.ErrRewritten) {
				return v.done, err
			}
		}
		m.log.Info("verification starts over", "reason", err)
		if err := v.closeBoth(); err != nil {
			return done, err
		}
	}
	return done, fmt.Errorf("%w; it started over %d times", err, maxAttempts)
}

// errTooMuch reports that the overlay cannot be used.
var errTooMuch = errors.New("the table was truncated, or too much was written since the snapshot")

// verification is a verification under way.
type verification struct {
	m      *Mirror
	w      *sideWork
	repair bool
	found  func(*state.Difference) error

	side   *sideStream
	frozen *state.Frozen
	over   *overlay
	done   Verified
}

// freezeBoth takes the snapshot of the table, freezes the local rows at the end of
// a transaction soon after it, and collects the changes between the two.
func (v *verification) freezeBoth(ctx context.Context) (err error) {
	if v.side, err = openSideStream(ctx, v.m, v.w, source.RowsCurrent); err != nil {
		return err
	}
	if err := v.side.startReading(ctx); err != nil {
		return err
	}
	v.w.setStage("wait for the local state")
	// From here on the local state is behind the snapshot.
	if err := v.m.barrier.awaitStream(ctx); err != nil {
		return err
	}
	err = v.m.gate.whilePaused(ctx, func(at id.LSN) (err error) {
		v.done.At = at
		v.frozen, err = v.m.store.Freeze()
		return err
	})
	if err != nil {
		return err
	}
	if verdict, why := source.CompareSources(v.frozen.Source(), v.side.cat.Source); verdict != source.RowsCurrent {
		return fmt.Errorf("%w: %s", ErrBusy, why)
	}
	v.over = newOverlay()
	err = v.side.readTo(v.done.At, func(p *pgoutput.Piece) error {
		for i := range p.Changes {
			if v.over.addChange(&p.Changes[i]); v.over.isUseless() {
				return errTooMuch
			}
		}
		return nil
	})
	if errors.Is(err, errTooMuch) {
		err = nil
	}
	v.done = Verified{At: v.done.At}
	v.done.Uncompared = int64(len(v.over.unknown))
	v.side.endStream()
	return err
}

// closeBoth releases the snapshot and the frozen rows.
func (v *verification) closeBoth() error {
	if v.side != nil {
		v.side.close()
		v.side = nil
	}
	if v.frozen == nil {
		return nil
	}
	f := v.frozen
	v.frozen = nil
	return f.Close()
}

// compareSums adds both sides up, and compares the rows one by one where the sums
// differ.
func (v *verification) compareSums(ctx context.Context) error {
	v.w.setStage("compare")
	table, local := &state.Tally{}, (*state.Tally)(nil)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return v.readTable(gctx, table, nil) })
	g.Go(func() (err error) {
		local, err = v.frozen.Tally(gctx, v.over.unknown)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	v.done.Rows = table.Rows() + v.done.Uncompared
	parts, rows := table.Differing(local)
	v.done.Miscounted = v.frozen.Miscounted() && len(parts) == 0
	if err := v.compareParts(ctx, parts, rows); err != nil {
		return err
	}
	if v.done.Miscounted && v.repair {
		if err := v.mendRows(ctx, nil); err != nil {
			return err
		}
		v.done.Miscounted = false
	}
	return nil
}

// readTable gives the sink the rows of the table as of the position. With parts it
// gives at least the rows of those parts: the server cannot select them for every
// type of key.
func (v *verification) readTable(ctx context.Context, sink tablecopy.RowSink, parts []int) error {
	in := &overlaySink{over: v.over, to: sink}
	only, progress := "", &v.w.copy
	if parts != nil {
		if only = partsSQL(v.side.cat.Columns, parts); only != "" {
			progress = &tablecopy.Counter{} // the progress of a few rows is of no interest
		}
	}
	if _, err := tablecopy.Copy(ctx, v.m.db, v.m.copyRequest(v.side.snapshot, only, in, progress)); err != nil {
		return err
	}
	return in.addChanged()
}

// partsSQL is the condition that a row lies in one of the parts, see
// [state.PartOf]; "" where the key is no integer. It spares sending the other rows,
// not reading them.
func partsSQL(columns []source.NeededColumn, parts []int) string {
	name := pgx.Identifier{columns[pgoutput.KeyColumn].Name}.Sanitize()
	if _, integer := tablecopy.ColumnExpression(name, columns[pgoutput.KeyColumn].Type); !integer || len(columns) > pgoutput.NeededColumns {
		return ""
	}
	list := make([]string, len(parts))
	for i, p := range parts {
		list[i] = strconv.Itoa(p)
	}
	return fmt.Sprintf("(%s::bigint & %d) = ANY ('{%s}')", name, state.Parts-1, strings.Join(list, ","))
}

// compareParts compares the rows of the parts one by one, as many at a time as memory
// allows.
func (v *verification) compareParts(ctx context.Context, parts []int, rows []int64) error {
	for round := 0; len(parts) > 0; round++ {
		if round == v.m.compareRounds {
			for _, n := range rows {
				v.done.Unchecked += n
			}
			return nil
		}
		n, sum := 0, int64(0)
		for n < len(parts) && (n == 0 || sum+rows[n] <= v.m.compareAtOnce) {
			sum += rows[n]
			n++
		}
		if err := v.compareRows(ctx, parts[:n]); err != nil {
			return err
		}
		parts, rows = parts[n:], rows[n:]
	}
	return nil
}

// compareRows finds the rows that differ in some parts, passes them to found and
// mends them.
func (v *verification) compareRows(ctx context.Context, parts []int) error {
	v.w.setStage("look closer")
	c := v.frozen.Compare(parts, v.over.unknown)
	if err := v.readTable(ctx, c, parts); errors.Is(err, tablecopy.ErrRewritten) {
		return fmt.Errorf("%v: verify again", err) //nolint:errorlint // found has seen some differences already: the verification does not start over by itself
	} else if err != nil {
		return err
	}
	differences, err := c.Finish(ctx)
	if err != nil {
		return err
	}
	v.done.Differences += int64(len(differences))
	for i := range differences {
		if err := v.found(&differences[i]); err != nil {
			return err
		}
	}
	if !v.repair {
		return nil
	}
	v.w.setStage("mend")
	for len(differences) > 0 {
		n := min(len(differences), mendAtOnce)
		if err := v.mendRows(ctx, differences[:n]); err != nil {
			return err
		}
		differences = differences[n:]
	}
	return nil
}

// mendRows writes the table's rows in place of differing ones, between two
// transactions.
func (v *verification) mendRows(ctx context.Context, differences []state.Difference) error {
	return v.m.gate.whilePaused(ctx, func(id.LSN) error {
		n, err := v.frozen.Mend(differences)
		if err != nil {
			return err
		}
		v.done.Mended += int64(n)
		v.done.Written += int64(len(differences) - n)
		return nil
	})
}
