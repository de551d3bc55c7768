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
	// nagEvery is how often the side stream asks the server for its position while
	// it waits for it: the mirror's stream will soon be paused for the side stream.
	nagEvery = 5 * time.Millisecond
)

// sideStream is a second stream of the table, which begins at a snapshot of its
// own. It does not touch the mirror's slot and acknowledged position. Its slot is a
// temporary one: the server drops it with the connection, however that ends.
//
// It has one owner. It sends the same changes as the mirror's own stream, in the
// same order.
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
	at     id.LSN // every transaction that ended up to here was handed out
	beats  sync.WaitGroup
	stop   context.CancelCauseFunc // ends the beats
	ctx    context.Context         // ends the beats
}

// openSideStream makes the slot and its snapshot. It waits for open transactions.
// The snapshot may differ from the source of the served rows by most at the utmost.
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

// connect connects and makes the slot. After an error the caller closes s.
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
	if s.cat, err = db.Inspect(ctx, s.sql, true); err != nil { // as of the snapshot
		return err
	}
	if v, why := source.CompareSources(src, s.cat.Source); v > most {
		return fmt.Errorf("%w: the mirror takes new rows by itself: %s", ErrBusy, why)
	}
	return nil
}

// createSlot makes the temporary slot and imports its snapshot, which the server
// forgets with the next command on the replication connection. The importing
// transaction can export it to others.
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

// startReading begins to read the changes after the snapshot. The stream is kept
// alive until endStream, or until ctx ends.
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
// before: whole transactions, or parts of one. Later changes stay unread.
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

// notePosition moves the position. The server may forget the WAL before it: a side
// stream does not come again.
func (s *sideStream) notePosition(lsn id.LSN) {
	if lsn > s.at {
		s.at = lsn
		s.status.NoteDone(lsn)
	}
}

// endStream ends the stream and with it the slot, so that the slot keeps no WAL.
// The snapshot stays.
func (s *sideStream) endStream() {
	if s.streamEnded || s.repl == nil {
		return
	}
	s.streamEnded = true
	if s.stop != nil {
		s.stop(errors.New("the side stream was ended"))
		s.beats.Wait()
	}
	source.CloseConn(s.repl)
}

// dropSnapshot closes the connection that holds the snapshot.
func (s *sideStream) dropSnapshot() {
	if s.sql != nil {
		source.CloseConn(s.sql.PgConn())
		s.sql = nil
	}
}

// close ends stream and snapshot.
func (s *sideStream) close() {
	s.endStream()
	s.dropSnapshot()
}
