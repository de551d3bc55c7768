package cdc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

const (
	// sideSuffix follows our slot's name in that of a side stream's.
	sideSuffix = "_side_"
	// nagEvery is how often the server is asked how far it is while the side
	// stream waits for it: what is read beside the stream is soon a hold.
	nagEvery = 5 * time.Millisecond
	// codeConfigurationLimit: no slot or walsender is free.
	codeConfigurationLimit = "53400"
)

// side is a second stream of the table, which begins at a snapshot of its own.
// The mirror's slot and what it has acknowledged are not touched by it. Its slot
// is a temporary one: whatever becomes of us, the server drops it.
//
// It has one owner, and sends what the mirror's own stream sends, in the same
// order.
type side struct {
	m     *Mirror
	name  string // of the slot
	cat   *catalog
	start id.LSN
	// snapshot shows the table as of start, until close.
	snapshot string
	sql      *pgx.Conn      // holds the snapshot
	repl     *pgconn.PgConn // owns the slot
	hungUp   bool

	out   *stream
	back  *feedback
	asm   *pgoutput.Assembler
	at    id.LSN // everything that ended up to it was handed out
	beats sync.WaitGroup
	stop  context.CancelCauseFunc // ends the beats
	ctx   context.Context         // they end with
}

// openSide makes the slot and its snapshot. It waits for transactions that are
// open. The snapshot must show what the store mirrors, with a difference of at
// most so much.
func (m *Mirror) openSide(ctx context.Context, w *work, most verdict) (*side, error) {
	w.at("wait for open transactions")
	src, err := m.mirrored()
	if err != nil {
		return nil, err
	}
	s := &side{m: m, name: sideName(m.cfg.Slot)}
	if err := s.open(ctx, src, w, most); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// open connects and makes the slot. After an error, close what there is.
func (s *side) open(ctx context.Context, src state.Source, w *work, most verdict) (err error) {
	cfg := &s.m.cfg
	if s.sql, err = cfg.dialSQL(ctx); err != nil {
		return err
	}
	if s.cat, err = cfg.inspect(ctx, s.sql, true); err != nil {
		return err
	}
	if s.repl, err = cfg.dialReplication(ctx); err != nil {
		return err
	}
	if err = sameServer(ctx, s.repl, s.cat); err != nil {
		return err
	}
	if err = s.createSlot(ctx, w); err != nil {
		return err
	}
	if s.cat, err = cfg.inspect(ctx, s.sql, true); err != nil { // under the snapshot
		return err
	}
	if v, why := compare(src, s.cat.source); v > most {
		return fmt.Errorf("%w: the mirror takes new rows by itself: %s", ErrBusy, why)
	}
	return nil
}

// sideName is a slot name that is nobody's.
func sideName(slot string) string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	suffix := sideSuffix + hex.EncodeToString(b[:])
	return slot[:min(len(slot), maxIdentifier-len(suffix))] + suffix
}

// createSlot makes the temporary slot and takes over its snapshot, which the
// server forgets with the next command on the replication connection. A
// transaction that has taken it can give it to others.
func (s *side) createSlot(ctx context.Context, w *work) error {
	slot, err := s.m.explainWait(ctx, s.sql, s.name, s.repl.PID(), w.at, func() (newSlot, error) {
		r, err := pglogrepl.CreateReplicationSlot(ctx, s.repl, s.name, plugin,
			pglogrepl.CreateReplicationSlotOptions{Temporary: true, Mode: pglogrepl.LogicalReplication, SnapshotAction: "EXPORT_SNAPSHOT"})
		if sqlState(err) == codeConfigurationLimit {
			return newSlot{}, fmt.Errorf("make temporary slot: %w; it needs one more of max_replication_slots and of max_wal_senders than the mirror alone", err)
		}
		if err != nil {
			return newSlot{}, fmt.Errorf("make temporary slot: %w", err)
		}
		start, err := id.ParseLSN(r.ConsistentPoint)
		return newSlot{start: start, snapshot: r.SnapshotName}, err
	})
	if err != nil {
		return err
	}
	if err := takeSnapshot(ctx, s.sql, slot.snapshot); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	if err := s.sql.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&s.snapshot); err != nil {
		return fmt.Errorf("export snapshot: %w", err)
	}
	s.start, s.at = slot.start, slot.start
	return nil
}

// stream begins to read what came after the snapshot. It is kept alive until
// hangUp, or ctx ends.
func (s *side) stream(ctx context.Context) error {
	every, err := walSenderTimeout(ctx, s.repl)
	if err != nil {
		return err
	}
	cfg := s.m.cfg
	cfg.Slot = s.name
	if s.out, err = startStream(ctx, s.repl, &cfg, s.start); err != nil {
		return err
	}
	s.asm = pgoutput.NewAssembler(s.cat.source.TableOID, s.cat.columnNames(), s.start)
	s.back = newFeedback(s.out, s.start)
	s.ctx, s.stop = context.WithCancelCause(ctx)
	s.beats.Go(func() {
		if err := s.back.run(s.ctx, statusEvery(every)); err != nil {
			s.stop(err)
		}
	})
	s.beats.Go(func() {
		for sleep(s.ctx, nagEvery) {
			if s.back.waiting.Load() {
				s.back.requestReply()
			}
		}
	})
	s.beats.Go(func() {
		<-s.ctx.Done()
		s.out.interrupt()
	})
	return nil
}

// follow hands everything to take that ended up to target and was not handed out
// before: whole transactions, or parts of one. What ended later stays unread.
func (s *side) follow(target id.LSN, take func(p *pgoutput.Piece) error) error {
	for s.at < target {
		if s.asm.InTransaction() && s.asm.CommitLSN >= target {
			return nil // transactions come in the order of their commits
		}
		s.back.waiting.Store(true)
		data, err := s.out.receive()
		s.back.waiting.Store(false)
		if err != nil {
			if s.ctx.Err() != nil {
				err = context.Cause(s.ctx)
			}
			return fmt.Errorf("follow beside the stream: %w", err)
		}
		s.back.messages.Add(1)
		if err := s.handle(data, take); err != nil {
			return err
		}
	}
	return nil
}

// handle takes one message; see receiver.handle.
func (s *side) handle(data []byte, take func(p *pgoutput.Piece) error) error {
	msg, err := parseMessage(data)
	if err != nil {
		return err
	}
	if msg.wal == nil {
		if !s.asm.InTransaction() {
			s.reached(msg.end)
		}
		return nil
	}
	p, ok, err := s.asm.Add(msg.wal)
	if err != nil || !ok {
		return err
	}
	if err := take(&p); err != nil {
		return err
	}
	s.reached(p.End)
	return nil
}

// reached moves the position. The server may forget what lies before it: a side
// stream does not come again.
func (s *side) reached(lsn id.LSN) {
	if lsn > s.at {
		s.at = lsn
		s.back.received.Store(uint64(lsn))
		s.back.durable.Store(uint64(lsn))
	}
}

// hangUp ends the stream and with it the slot, so that it keeps no WAL. The
// snapshot stays.
func (s *side) hangUp() {
	if s.hungUp || s.repl == nil {
		return
	}
	s.hungUp = true
	if s.stop != nil {
		s.stop(errors.New("it was ended"))
		s.beats.Wait()
	}
	closeConn(s.repl)
}

// dropSnapshot lets go of the snapshot.
func (s *side) dropSnapshot() {
	if s.sql != nil {
		closeConn(s.sql.PgConn())
		s.sql = nil
	}
}

// close ends both.
func (s *side) close() {
	s.hangUp()
	s.dropSnapshot()
}
