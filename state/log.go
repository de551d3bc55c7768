package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// ErrLogGap reports that the subscription log does not reach back to the position, or there is no
// log. What happened since can only be learned from the rows.
var ErrLogGap = errors.New("the log of subscription changes does not reach back that far")

// errBadLog: an entry of the log cannot be read. The log is dropped, and the store is not
// damaged.
var errBadLog = errors.New("the log of subscription changes is damaged")

// LogStart is where the subscription log begins.
type LogStart struct {
	// History names the history of the source that positions of the log belong to. It is
	// 0 until the source is set back on its timeline, as by a copy of its disk from
	// yesterday: positions come again then, with other transactions. The load that
	// follows gives the log a random history, which no other store has.
	History uint64
	// Floor: the entries of every transaction that ends after it are there. A reader
	// that has handled everything up to Floor or a later position of this history can go
	// on; others must read the rows.
	Floor id.LSN
}

// LogStart returns where the subscription log begins. on is false if there is no log.
func (s *Store) LogStart() (start LogStart, on bool) {
	v := s.currentView()
	return LogStart{History: v.logHistory, Floor: v.logFloor}, s.logw.isOn()
}

// LogFloor returns the Floor of [Store.LogStart].
func (s *Store) LogFloor() (floor id.LSN, on bool) {
	start, on := s.LogStart()
	return start.Floor, on
}

// LogCursor is how far a reader of the subscription log is: it has handled the
// transactions that end up to End. The other fields are how many entries of the next
// transaction it has handled; they are not stored, and zero stands for the first.
type LogCursor struct {
	End   id.LSN
	piece uint32 // number of the part to go on in; 0: the first; lastPiece: the last
	skip  int    // entries of that part that are handled
}

// InTransaction reports whether the reader is between two entries of a transaction.
func (c LogCursor) InTransaction() bool { return c.piece > 0 || c.skip > 0 }

// lastPiece is the number of a transaction's last part in a cursor.
const lastPiece = math.MaxUint32

// ReadLog passes up to limit entries behind from to fn, in the order of the transactions,
// and returns the cursor behind them. done reports that there are no more entries of
// transactions that readers of the rows see now; next.End is then the position that
// they see, unless from was further. The ids of an entry are valid until fn returns. An
// error of fn ends the read, and next is the cursor before its entry.
//
// The entries are at least those of the pairs that a transaction made: there may be more,
// and one twice. The error wraps [ErrLogGap] where entries behind from may be missing.
func (s *Store) ReadLog(from LogCursor, limit int, fn func(e *LogEntry) error) (next LogCursor, done bool, err error) {
	release, err := s.acquire()
	if err != nil {
		return from, false, err
	}
	defer release()
	r := logRead{next: from, left: limit, fn: fn}
	s.mu.RLock()
	r.end = s.view.end
	floor := s.view.logFloor
	it, err := s.db.NewIter(logBounds())
	s.mu.RUnlock()
	if err != nil {
		return from, false, s.checkDamage(fmt.Errorf("read subscription log: %w", err))
	}
	if from.End < floor || !s.logw.isOn() {
		return from, false, errors.Join(fmt.Errorf("read changes after %s, log begins at %s: %w", from.End, floor, ErrLogGap), it.Close())
	}
	done, err = r.read(it)
	err = errors.Join(err, it.Error(), it.Close())
	if errors.Is(err, errBadLog) {
		err = errors.Join(fmt.Errorf("%w: %w", ErrLogGap, err), s.dropLog(err))
	}
	return r.next, done, s.checkDamage(err)
}

// logBounds are the bounds of an iterator over the log.
func logBounds() *pebble.IterOptions {
	return &pebble.IterOptions{LowerBound: []byte{spaceLog}, UpperBound: []byte{spaceLog + 1}, KeyTypes: pebble.IterKeyTypePointsOnly}
}

// logRead is one call of ReadLog.
type logRead struct {
	next LogCursor
	left int
	end  id.LSN // the position that readers see
	fn   func(e *LogEntry) error
}

// read reads up to the limit (false), or up to the end (true).
func (r *logRead) read(it *pebble.Iterator) (done bool, err error) {
	ok, err := r.seek(it)
	for ; ok && err == nil; ok = it.Next() {
		var lsn id.LSN
		var part uint32
		if lsn, part, err = parseLogKey(it.Key()); err != nil {
			break
		}
		var more bool
		if part == 0 {
			more, err = r.readBlob(it.Value())
		} else {
			more, err = r.readParts(it, lsn)
		}
		if !more || err != nil {
			break
		}
	}
	if err != nil || r.left <= 0 && r.next.End < r.end {
		return false, err
	}
	if !r.next.InTransaction() {
		r.next.End = max(r.next.End, r.end)
	}
	return !r.next.InTransaction(), nil
}

// seek moves to the first blob that may hold something behind the cursor.
func (r *logRead) seek(it *pebble.Iterator) (ok bool, err error) {
	if !it.SeekLT(appendLogKey(nil, r.next.End+1, 0)) {
		return it.First(), it.Error()
	}
	lsn, part, err := parseLogKey(it.Key())
	if part == 0 || err != nil {
		return true, err
	}
	// Parts belong to the next transaction, which ends behind the cursor.
	return it.SeekGE(appendLogKey(nil, lsn, 1)), it.Error()
}

// readBlob reads a blob with part 0. more is false where the read ends.
func (r *logRead) readBlob(value []byte) (more bool, err error) {
	blob, err := parseBlob(value)
	for err == nil {
		var t logTransaction
		var ok bool
		if t, ok, err = blob.next(); err != nil || !ok {
			return true, err
		}
		if t.end <= r.next.End {
			continue
		}
		if t.end > r.end || r.left <= 0 && !r.next.InTransaction() {
			return false, nil
		}
		if more, err = r.readEntries(&t, lastPiece, t.end, t.time()); err != nil || !more {
			return false, err
		}
		r.next = LogCursor{End: t.end}
	}
	return false, err
}

// readParts reads the blobs of the parts of a transaction that began at the position lsn.
// it is at the first of them and then at the last.
func (r *logRead) readParts(it *pebble.Iterator, lsn id.LSN) (more bool, err error) {
	if !it.SeekGE(appendLogKey(nil, lsn, math.MaxUint32)) {
		return false, it.Error() // the transaction has not ended
	}
	owner, err := firstTransaction(it)
	if err != nil || owner.end > r.end {
		return false, err
	}
	from := appendLogKey(nil, lsn, max(r.next.piece, 1))
	if owner.end <= r.next.End || r.next.piece == lastPiece {
		from = appendLogKey(nil, lsn, math.MaxUint32)
	}
	for ok := it.SeekGE(from); ok; ok = it.Next() {
		_, part, err := parseLogKey(it.Key())
		if err != nil {
			return false, err
		}
		if part == 0 {
			it.Prev()
			return true, it.Error()
		}
		blob, err := parseBlob(it.Value())
		if err != nil {
			return false, err
		}
		t, err := blob.first()
		if err != nil {
			return false, err
		}
		if more, err = r.readEntries(&t, part, owner.end, owner.time()); err != nil || !more {
			return false, err
		}
		r.next.piece, r.next.skip = part+1, 0
	}
	return false, it.Error()
}

// firstTransaction returns the first transaction of the blob at it, which has part 0.
func firstTransaction(it *pebble.Iterator) (logTransaction, error) {
	if _, part, err := parseLogKey(it.Key()); err != nil || part != 0 {
		return logTransaction{}, errors.Join(fmt.Errorf("look for the end of a transaction at %x: %w", it.Key(), errBadLog), err)
	}
	blob, err := parseBlob(it.Value())
	if err != nil {
		return logTransaction{}, err
	}
	return blob.first()
}

// readEntries reads the entries of one piece of a transaction.
func (r *logRead) readEntries(t *logTransaction, piece uint32, end id.LSN, at time.Time) (more bool, err error) {
	skip := 0
	if r.next.piece == piece {
		skip = r.next.skip
	}
	e := LogEntry{End: end, Time: at}
	for i := 0; ; i++ {
		if r.left <= 0 && i < t.entries {
			r.next.piece, r.next.skip = piece, max(i, skip)
			return false, nil
		}
		ok, err := t.next(&e)
		if err != nil || !ok {
			return err == nil, err
		}
		if i < skip {
			continue
		}
		if err := r.fn(&e); err != nil {
			r.next.piece, r.next.skip = piece, i
			return false, err
		}
		r.left--
	}
}

// History is what the subscription log tells of a pair.
type History struct {
	// Entries are the newest ones, the newest first; entries LogTruncated, which concern
	// every pair, among them.
	Entries []LogEntry
	// Floor and Since are where the log begins: entries of transactions that end after
	// Floor, and that were applied here after Since, are complete.
	Floor id.LSN
	Since time.Time
	// On is false if there is no log.
	On bool
}

// History looks for the newest entries of a pair, limit at most. With restaurant "" it
// looks for all of the client's. It reads the log backwards, up to all of it.
func (s *Store) History(ctx context.Context, restaurant, client id.ID, limit int) (*History, error) {
	release, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer release()
	s.mu.RLock()
	h := &History{Floor: s.view.logFloor, On: s.logw.isOn()}
	if h.On {
		h.Since = time.Unix(s.view.logSince, 0).UTC()
	}
	end := s.view.end
	it, err := s.db.NewIter(logBounds())
	s.mu.RUnlock()
	if err != nil {
		return nil, s.checkDamage(fmt.Errorf("read subscription log: %w", err))
	}
	if h.On {
		r := logSearch{restaurant: restaurant, client: client, end: end, limit: limit}
		err = r.readBackwards(ctx, it)
		h.Entries = r.found
	}
	err = errors.Join(err, it.Error(), it.Close())
	if errors.Is(err, errBadLog) {
		err = errors.Join(err, s.dropLog(err))
	}
	if err != nil {
		return nil, s.checkDamage(fmt.Errorf("read subscription log: %w", err))
	}
	return h, nil
}

// logSearch is one call of History.
type logSearch struct {
	restaurant, client id.ID
	end                id.LSN // the position that readers see
	limit              int
	found              []LogEntry
}

func (r *logSearch) readBackwards(ctx context.Context, it *pebble.Iterator) error {
	var owner logTransaction // of parts: the first transaction of the blob behind them
	for ok := it.Last(); ok && len(r.found) < r.limit && ctx.Err() == nil; ok = it.Prev() {
		_, part, err := parseLogKey(it.Key())
		if err != nil {
			return err
		}
		value := it.Value()
		isPart := part > 0
		switch {
		case isPart && (owner.end == 0 || owner.end > r.end):
			continue // not ended, or not visible yet
		case !isPart:
			if owner, err = firstTransaction(it); err != nil {
				return err
			}
		}
		if len(value) > 0 && value[0]&blobTruncated == 0 && !bytes.Contains(value, []byte(r.client)) {
			continue
		}
		if err := r.searchBlob(value, isPart, &owner); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// searchBlob adds the entries of one blob, the last first.
func (r *logSearch) searchBlob(value []byte, isPart bool, owner *logTransaction) error {
	blob, err := parseBlob(value)
	if err != nil {
		return err
	}
	from := len(r.found)
	for {
		t, ok, err := blob.next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		e := LogEntry{End: t.end, Time: t.time()}
		if isPart {
			e.End, e.Time = owner.end, owner.time()
		}
		if e.End > r.end {
			break
		}
		for ok := true; ok; {
			if ok, err = t.next(&e); err != nil {
				return err
			}
			if ok && r.matches(&e) {
				r.found = append(r.found, e.cloneEntry())
			}
		}
	}
	slices.Reverse(r.found[from:])
	r.found = r.found[:min(len(r.found), r.limit)]
	return nil
}

func (r *logSearch) matches(e *LogEntry) bool {
	return e.Kind == LogTruncated || e.Client == r.client && (r.restaurant == "" || e.Restaurant == r.restaurant)
}

// TrimLog drops entries of transactions that end up to upTo: not necessarily all, because
// the log is trimmed in pieces.
func (s *Store) TrimLog(upTo id.LSN) error {
	return s.changeLog(func(l *logWriter, batch *pebble.Batch) error {
		old := 0
		for old < len(l.segments) && l.segments[old].end <= upTo {
			old++
		}
		return l.dropSegments(batch, old)
	})
}

// dropLog drops the log because of why. The log goes on from the present position.
func (s *Store) dropLog(why error) error {
	s.log.Warn("the log of subscription changes cannot be read and begins anew", "error", why)
	return s.changeLog(func(l *logWriter, batch *pebble.Batch) error {
		// The parts of a transaction under way go too, so that its end raises the floor.
		l.next.dropped = l.parts > 0
		return l.dropEntries(batch, s.written.end+1, s.o.now().Unix())
	})
}

// changeLog changes the log alone.
func (s *Store) changeLog(change func(l *logWriter, batch *pebble.Batch) error) error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	l := &s.logw
	if !l.isOn() {
		return nil
	}
	batch := s.db.NewBatch()
	defer batch.Close()
	l.next = l.logState
	if err := errors.Join(change(l, batch), l.writeRecord(batch, s.written)); err != nil {
		return fmt.Errorf("change subscription log: %w", err)
	}
	s.showLogFloor()
	if err := batch.Commit(pebble.NoSync); err != nil {
		return s.checkDamage(fmt.Errorf("change subscription log: %w", err))
	}
	l.logState = l.next
	s.notifyWatchers()
	return nil
}

// showLogFloor shows readers the floor of the batch under way, before its commit: a
// reader that sees the batch must know that entries are gone.
func (s *Store) showLogFloor() {
	rec := &s.logw.next.rec
	s.mu.Lock()
	s.view.logFloor, s.view.logSince = rec.floor, rec.since
	s.mu.Unlock()
}

// WatchApplied returns a channel that gets a token whenever readers of the rows or of the
// log may see more than before, and a function that ends that.
func (s *Store) WatchApplied() (applied <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	s.watchMu.Lock()
	defer s.watchMu.Unlock()
	s.watchers = append(s.watchers, c)
	return c, func() {
		s.watchMu.Lock()
		defer s.watchMu.Unlock()
		s.watchers = slices.DeleteFunc(s.watchers, func(w chan struct{}) bool { return w == c })
	}
}

// notifyWatchers gives each watcher a token.
func (s *Store) notifyWatchers() {
	s.watchMu.Lock()
	defer s.watchMu.Unlock()
	for _, c := range s.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
