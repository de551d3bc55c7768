package cdc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/cdc/replication"
	"dinnerbell/cdc/source"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

const (
	// nagEvery is how often the server is asked how far it is while the side
	// stream waits for it: what is read beside the stream is soon a hold.
	nagEvery = 5 * time.Millisecond
)

// sideStream is a second stream of the table, which begins at a snapshot of its own.
// The mirror's slot and what it has acknowledged are not touched by it. Its slot
// is a temporary one: whatever becomes of us, the server drops it.
//
// It has one owner, and sends what the mirror's own stream sends, in the same
// order.
type sideStream struct {
	m     *Mirror
	name  string // of the slot
	cat   *source.Catalog
	start id.LSN
	// snapshot shows the table as of start, until close.
	snapshot    string
	sql         *pgx.Conn      // holds the snapshot
	repl        *pgconn.PgConn // owns the slot
	streamEnded bool

	out    *replication.Stream
	status *replication.StatusSender
	in     *replication.Reader
	at     id.LSN // everything that ended up to it was handed out
	beats  sync.WaitGroup
	stop   context.CancelCauseFunc // ends the beats
	ctx    context.Context         // they end with
}

// openSideStream makes the slot and its snapshot. It waits for transactions that are
// open. The snapshot must show what the store mirrors, with a difference of at
// most so much.
func openSideStream(ctx context.Context, m *Mirror, w *sideWork, most source.Verdict) (*sideStream, error) {
	w.setStage("wait for open transactions")
	src, err := m.servedSource()
	if err != nil {
		return nil, err
	}
	s := &sideStream{m: m, name: source.SideSlotName(m.cfg.Slot)}
	if err := s.connect(ctx, src, w, most); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// connect connects and makes the slot. After an error, close what there is.
func (s *sideStream) connect(ctx context.Context, src state.Source, w *sideWork, most source.Verdict) (err error) {
	db := s.m.db
	if s.sql, err = db.DialSQL(ctx); err != nil {
		return err
	}
	if s.cat, err = db.Inspect(ctx, s.sql, true); err != nil {
		return err
	}
	if s.repl, err = db.DialReplication(ctx); err != nil {
		return err
	}
	if err = source.CheckSameServer(ctx, s.repl, s.cat); err != nil {
		return err
	}
	if err = s.createSlot(ctx, w); err != nil {
		return err
	}
	if s.cat, err = db.Inspect(ctx, s.sql, true); err != nil { // under the snapshot
		return err
	}
	if v, why := source.CompareSources(src, s.cat.Source); v > most {
		return fmt.Errorf("%w: the mirror takes new rows by itself: %s", ErrBusy, why)
	}
	return nil
}

// CreateSlot makes the temporary slot and takes over its snapshot, which the
// server forgets with the next command on the replication connection. A
// transaction that has taken it can give it to others.
func (s *sideStream) createSlot(ctx context.Context, w *sideWork) error {
	slot, err := s.m.db.ExplainSlotWait(ctx, s.sql, s.name, s.repl.PID(), source.WaitReport{Show: w.setStage, After: s.m.hooks.slowSlot}, func() (source.CreatedSlot, error) {
		return source.CreateTemporarySlot(ctx, s.repl, s.name)
	})
	if err != nil {
		return err
	}
	if err := source.ImportSnapshot(ctx, s.sql, slot.Snapshot); err != nil {
		return err
	}
	if s.snapshot, err = source.ExportSnapshot(ctx, s.sql); err != nil {
		return err
	}
	s.start, s.at = slot.Start, slot.Start
	return nil
}

// startReading begins to read what came after the snapshot. It is kept alive until
// endStream, or ctx ends.
func (s *sideStream) startReading(ctx context.Context) error {
	every, err := replication.ReadWALSenderTimeout(ctx, s.repl)
	if err != nil {
		return err
	}
	if s.out, err = replication.Start(ctx, s.repl, s.name, s.m.cfg.QuotedPublication(), s.start); err != nil {
		return err
	}
	s.status = replication.NewStatusSender(s.out, s.start)
	s.in = replication.NewReader(s.out, pgoutput.NewAssembler(s.cat.Source.TableOID, s.cat.ColumnNames(), s.start), s.status)
	s.ctx, s.stop = context.WithCancelCause(ctx)
	s.beats.Go(func() {
		if err := s.status.Run(s.ctx, replication.StatusInterval(every)); err != nil {
			s.stop(err)
		}
	})
	s.beats.Go(func() {
		for source.Sleep(s.ctx, nagEvery) {
			if s.status.Waiting() {
				s.status.RequestReply()
			}
		}
	})
	s.beats.Go(func() {
		<-s.ctx.Done()
		s.out.Interrupt()
	})
	return nil
}

// readTo hands everything to take that ended up to target and was not handed out
// before: whole transactions, or parts of one. What ended later stays unread.
func (s *sideStream) readTo(target id.LSN, take func(p *pgoutput.Piece) error) error {
	for s.at < target && !s.in.IsPast(target) {
		ev, err := s.in.Next()
		if err != nil {
			if s.ctx.Err() != nil {
				err = context.Cause(s.ctx)
			}
			return fmt.Errorf("follow beside the stream: %w", err)
		}
		s.notePosition(ev.WALEnd)
		if !ev.HasPiece {
			continue
		}
		if err := take(&ev.Piece); err != nil {
			return err
		}
		s.notePosition(ev.Piece.End)
	}
	return nil
}

// notePosition moves the position. The server may forget what lies before it: a side
// stream does not come again.
func (s *sideStream) notePosition(lsn id.LSN) {
	if lsn > s.at {
		s.at = lsn
		s.status.NoteDone(lsn)
	}
}

// endStream ends the stream and with it the slot, so that it keeps no WAL. The
// snapshot stays.
func (s *sideStream) endStream() {
	if s.streamEnded || s.repl == nil {
		return
	}
	s.streamEnded = true
	if s.stop != nil {
		s.stop(errors.New("it was ended"))
		s.beats.Wait()
	}
	source.CloseConn(s.repl)
}

// dropSnapshot lets go of the snapshot.
func (s *sideStream) dropSnapshot() {
	if s.sql != nil {
		source.CloseConn(s.sql.PgConn())
		s.sql = nil
	}
}

// close ends both.
func (s *sideStream) close() {
	s.endStream()
	s.dropSnapshot()
}
