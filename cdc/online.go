package cdc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/cdc/source"
	"dinnerbell/cdc/tablecopy"
	"dinnerbell/internal/failpoint"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

const (
	// nearEnough is how long the new rows may need to reach the position of the old
	// ones before the stream is paused for them.
	nearEnough = 50 * time.Millisecond
	// maxHolds is how often the stream is paused in vain before a rebuild gives up.
	maxHolds = 20
	// maxAttempts is how often a rebuild or a verification starts over because the
	// rows that it had read were of no use.
	maxAttempts = 5
	// maxCatchUp is how many changes go to the new rows in one write.
	maxCatchUp = 4096
)

// Rebuilt is the result of a rebuild.
type Rebuilt struct {
	Subscriptions int64
	At            id.LSN // where the new rows took over
}

// RebuildOnline replaces the rows by those of a new snapshot, while Run goes on
// with the old rows. A second stream brings the new rows forward; they take over at
// the end of a transaction, at the position of the old rows. Readers and the
// barrier wait for that half a second at most, normally a few milliseconds. After
// an error the old rows are served as before. It returns [ErrBusy] if it cannot
// begin now.
func (m *Mirror) RebuildOnline(ctx context.Context) (done Rebuilt, err error) {
	ctx, w, err := m.work.beginWork(ctx, WorkRebuild)
	if err != nil {
		return done, err
	}
	defer func() { err = m.work.endWork(ctx, w, err) }()
	return (&onlineRebuild{m: m, work: w}).run(ctx)
}

// onlineRebuild is a rebuild beside the served rows.
type onlineRebuild struct {
	m    *Mirror
	work *sideWork
	side *sideStream // of the attempt under way
}

// run makes attempts until one was of use. ErrStale: a TRUNCATE came between the look at
// the table and the end of the attempt, or the rows were loaded anew.
func (r *onlineRebuild) run(ctx context.Context) (done Rebuilt, err error) {
	for range maxAttempts {
		if done, err = r.attemptRebuild(ctx); !errors.Is(err, tablecopy.ErrRewritten) && !errors.Is(err, state.ErrStale) {
			break
		}
		r.m.log.Info("the rebuild starts over", "reason", err)
	}
	return done, err
}

// attemptRebuild makes one attempt. It returns ErrRewritten or ErrStale if another is needed.
func (r *onlineRebuild) attemptRebuild(ctx context.Context) (done Rebuilt, err error) {
	if r.side, err = openSideStream(ctx, r.m, r.work, source.RowsOutdated); err != nil {
		return done, err
	}
	defer r.side.close()
	g, err := r.loadBeside(ctx)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, g.Drop()) }()
	failpoint.Hit("rebuild/loaded")
	r.side.dropSnapshot()
	r.work.setStage("catch up")
	if err := r.side.startReading(ctx); err != nil {
		return done, err
	}
	if done.At, err = r.takeOver(ctx, g); err != nil {
		return done, err
	}
	done.Subscriptions = g.Rows()
	r.m.log.Info("subscriptions were rebuilt", "subscriptions", done.Subscriptions, "lsn", done.At.String(), "took", time.Since(r.work.began))
	return done, nil
}

// loadBeside copies the table into rows that are not served yet.
func (r *onlineRebuild) loadBeside(ctx context.Context) (g *state.Generation, err error) {
	r.work.setStage("copy")
	loader, err := r.m.store.NewGeneration()
	if err != nil {
		return nil, fmt.Errorf("begin snapshot: %w", err)
	}
	defer func() { err = errors.Join(err, loader.Abort()) }()
	if _, err := tablecopy.Copy(ctx, r.m.db, r.m.copyRequest(r.side.snapshot, "", loader, &r.work.copy)); err != nil {
		return nil, err
	}
	failpoint.Hit("rebuild/copied")
	r.work.setStage("sort")
	if g, err = loader.Load(r.side.cat.Source, r.side.start); err != nil {
		return nil, fmt.Errorf("finish snapshot: %w", err)
	}
	return g, nil
}

// takeOver brings g to the position of the store, and lets it take over there.
func (r *onlineRebuild) takeOver(ctx context.Context, g *state.Generation) (at id.LSN, err error) {
	// From here on the store is behind the snapshot, whatever it was before.
	if err := r.m.barrier.awaitStream(ctx); err != nil {
		return 0, err
	}
	to := &generationWriter{g: g}
	for holds := 0; holds < maxHolds; {
		began := time.Now()
		if err := to.followTo(r.side, r.m.gate.position()); err != nil {
			return 0, err
		}
		if time.Since(began) > nearEnough {
			continue
		}
		holds++
		at, err := r.flipGeneration(ctx, to)
		if !errors.Is(err, errHeldTooLong) && !errors.Is(err, state.ErrNotThere) {
			return at, err
		}
		r.m.log.Info("the new subscriptions could not take over yet", "reason", err)
	}
	return 0, fmt.Errorf("the table is written faster than the rebuild can follow: the stream was paused %d times in vain; try again when less is written", maxHolds)
}

// errHeldTooLong reports that the stream went on before the new rows had come to
// its position.
var errHeldTooLong = errors.New("the stream would have had to wait too long")

// flipGeneration pauses the stream, brings the new rows to its position and lets
// them take over. Changes that the side stream sends behind that position are not
// read.
func (r *onlineRebuild) flipGeneration(ctx context.Context, to *generationWriter) (id.LSN, error) {
	h, err := r.m.gate.pauseStream(ctx, maxHold)
	if err != nil {
		return 0, err
	}
	if r.m.hooks.paused != nil {
		r.m.hooks.paused()
	}
	err = to.followTo(r.side, h.at)
	kept := h.keepPaused()
	if kept {
		defer h.resumeStream()
	}
	switch {
	case err != nil:
		return 0, err
	case !kept:
		return 0, errHeldTooLong
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	}
	failpoint.Hit("rebuild/held")
	served, err := r.m.servedSource()
	if err != nil {
		return 0, err
	}
	if v, why := source.CompareSources(served, r.side.cat.Source); v == source.StreamLost {
		return 0, fmt.Errorf("%w: %s", ErrBusy, why)
	}
	if err := to.g.Flip(h.at, served); err != nil {
		return 0, fmt.Errorf("take over at %s: %w", h.at, err)
	}
	failpoint.Hit("rebuild/flipped")
	return h.at, nil
}

// generationWriter brings a generation forward, many small transactions in one write.
type generationWriter struct {
	g     *state.Generation
	batch state.Batch
}

// followTo applies every transaction that ended up to target.
func (f *generationWriter) followTo(s *sideStream, target id.LSN) error {
	if err := s.readTo(target, f.collectPiece); err != nil {
		return err
	}
	return f.flushWhole()
}

// collectPiece collects whole transactions and writes them before a part of one.
func (f *generationWriter) collectPiece(p *pgoutput.Piece) error {
	if p.Partial {
		if err := f.flushWhole(); err != nil {
			return err
		}
	}
	f.batch.Changes = append(f.batch.Changes, p.Changes...)
	f.batch.End = p.End
	if p.Partial || len(f.batch.Changes) >= maxCatchUp {
		return f.applyBatch()
	}
	return nil
}

// flushWhole writes the whole transactions that were collected.
func (f *generationWriter) flushWhole() error {
	if f.batch.End == 0 {
		return nil
	}
	return f.applyBatch()
}

func (f *generationWriter) applyBatch() error {
	err := f.g.Apply(&f.batch)
	clear(f.batch.Changes)
	f.batch = state.Batch{Changes: f.batch.Changes[:0]}
	if err != nil {
		return fmt.Errorf("bring new rows forward: %w", err)
	}
	return nil
}
