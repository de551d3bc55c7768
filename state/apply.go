package state

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// Apply makes a batch visible to readers, as one write. It is durable only
// after [Store.Sync]. Applying the same transactions again from an earlier
// point gives the same rows: every change reads the row it replaces, so both
// indexes agree whatever comes.
//
// A transaction may come in parts: batches with End zero, then one with its
// end LSN, perhaps without changes; nothing may come between them. Until the
// last, readers see the state before the first. After a break in the middle,
// call [Store.Rewind] and send the transaction from its start.
//
// A batch of whole transactions that ends at or before [Store.EndLSN] does nothing.
func (s *Store) Apply(b *Batch) error {
	done, err := s.use()
	if err != nil {
		return err
	}
	defer done()
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if skip, err := s.known(b); skip || err != nil {
		return err
	}
	if err := s.roomForBatch(b); err != nil {
		return err
	}
	if err := s.changes.collect(ground{s.db, s.written.gen, s.repeat}, b.Changes); err != nil {
		return s.check(err)
	}
	if s.touched != nil {
		s.touched.add(&s.changes)
	}
	return s.check(s.commit(b.End))
}

// known says whether b has nothing new: it was applied, or it is a mere
// position while a cut transaction has still to come again.
func (s *Store) known(b *Batch) (bool, error) {
	if len(b.Changes) == 0 && !s.partial && (b.End == 0 || s.written.torn) {
		return true, nil
	}
	if b.End == 0 || b.End > s.written.end {
		return false, nil
	}
	if s.partial || s.written.torn {
		return false, fmt.Errorf("apply up to %s at %s: %w", b.End, s.written.end, ErrBehind)
	}
	return true, nil
}

// Rewind tells that the stream begins again at [Store.EndLSN]: if parts of a
// transaction were applied, it comes again from its first. Readers keep seeing
// the state before it.
func (s *Store) Rewind() {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	s.repeat = s.repeat || s.partial
}

// commit writes the collected changes and the position, and shows them to
// readers if end is one.
func (s *Store) commit(end id.LSN) error {
	next := s.written
	next.torn = end == 0
	if end != 0 {
		next.end = end
	}
	batch := s.db.NewBatch()
	defer batch.Close()
	if err := s.changes.emit(batch, &next); err != nil {
		return fmt.Errorf("collect batch: %w", err)
	}
	if err := batch.Set(keyState, next.encode(), nil); err != nil {
		return fmt.Errorf("collect batch: %w", err)
	}
	if end == 0 && !s.partial {
		s.holdBefore()
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("commit batch: %w", err)
	}
	s.written = next
	if end == 0 {
		return nil
	}
	s.partial, s.repeat = false, false
	return s.show(next)
}

// holdBefore keeps readers at the present state.
func (s *Store) holdBefore() {
	before := s.db.NewSnapshot()
	s.mu.Lock()
	s.view.before = before
	s.mu.Unlock()
	s.partial = true
}

// show lets readers see what r says is written.
func (s *Store) show(r record) error {
	s.mu.Lock()
	before := s.view.before
	s.view.before, s.view.record = nil, r
	s.mu.Unlock()
	if before == nil {
		return nil
	}
	// Iterators that were made from the snapshot hold their own files.
	return before.Close()
}

// Sync makes everything durable that was applied before the call, and returns
// the end LSN that is durable then. It does nothing when nothing is new.
func (s *Store) Sync() (id.LSN, error) {
	done, err := s.use()
	if err != nil {
		return 0, err
	}
	defer done()
	v := s.current()
	if v.end == v.durable {
		return v.durable, nil
	}
	// Pebble's log is one sequence: when this record is on disk, so is all before.
	if err := s.db.LogData(nil, pebble.Sync); err != nil {
		return v.durable, fmt.Errorf("sync state: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.view.gen == v.gen { // else a load took over, with a position of its own
		s.view.durable = max(s.view.durable, v.end)
	}
	return s.view.durable, nil
}

// changeset is the net effect of a batch of changes: each row once, from what
// is stored to what shall be. So a later change of a row sees an earlier one,
// and nothing depends on the order of writes, save that a TRUNCATE comes first.
type changeset struct {
	on        ground
	truncated bool
	effects   []effect
	at        map[id.RowID]int // index into effects
	key       []byte           // scratch
	value     []byte           // scratch
}

type effect struct {
	id       id.RowID
	old, new row
}

// ground is what changes apply to: the stored rows of one generation.
type ground struct {
	db     *pebble.DB
	gen    uint32
	repeat bool // see Store.repeat
}

// collect replaces the set by the effects of changes.
func (c *changeset) collect(on ground, changes []id.Change) error {
	c.reset()
	c.on, c.truncated = on, false
	for i := range changes {
		if err := c.add(&changes[i]); err != nil {
			return fmt.Errorf("apply %s of row %s: %w", changes[i].Op, changes[i].Row.Text(), err)
		}
	}
	return nil
}

// reset forgets the effects. A map or slice that one huge batch has grown is
// not kept.
func (c *changeset) reset() {
	const keep = 1 << 14
	if c.at == nil || len(c.effects) > keep {
		c.effects, c.at = nil, make(map[id.RowID]int)
		return
	}
	clear(c.effects)
	c.effects = c.effects[:0]
	clear(c.at)
}

func (c *changeset) add(ch *id.Change) error {
	if ch.Op == id.Truncate {
		c.reset()
		c.truncated = true
		return nil
	}
	if ch.Row == "" {
		return errors.New("change without a row id")
	}
	switch ch.Op {
	case id.Insert:
		return c.put(ch.Row, row{ch.Restaurant, ch.Client, true})
	case id.Update:
		return c.update(ch)
	case id.Delete:
		return c.put(ch.Row, row{})
	default: // a Truncate does not come here
		return fmt.Errorf("unknown operation %s", ch.Op)
	}
}

func (c *changeset) update(ch *id.Change) error {
	moved := ch.OldRow != "" && ch.OldRow != ch.Row
	next := row{ch.Restaurant, ch.Client, true}
	if ch.KeepRestaurant || ch.KeepClient {
		from := ch.Row
		if moved {
			from = ch.OldRow
		}
		i, err := c.find(from)
		if err != nil {
			return err
		}
		if next, err = keep(ch, c.effects[i].new, moved, c.on.repeat); err != nil {
			return err
		}
	}
	if moved {
		if err := c.put(ch.OldRow, row{}); err != nil {
			return err
		}
	}
	return c.put(ch.Row, next)
}

// keep is the new row of an update that leaves values of old alone.
//
// When a transaction is repeated over its own half-applied effects, a row may
// have gone already; then it goes again later in the transaction, and stays
// away till then. But if it changes its key, the row that stands under the old
// key may be another one that the transaction moved there: what was there
// before is lost, and only a rebuild gives it back.
func keep(ch *id.Change, old row, moved, repeat bool) (row, error) {
	switch {
	case repeat && moved:
		return row{}, ErrTorn
	case repeat && !old.stored:
		return row{}, nil
	case !old.stored:
		return row{}, ErrMissingRow
	}
	next := row{ch.Restaurant, ch.Client, true}
	if ch.KeepRestaurant {
		next.restaurant = old.restaurant
	}
	if ch.KeepClient {
		next.client = old.client
	}
	return next, nil
}

func (c *changeset) put(id id.RowID, to row) error {
	i, err := c.find(id)
	if err != nil {
		return err
	}
	c.effects[i].new = to
	return nil
}

// find returns the index of a row's effect; for a row that is new to the set
// it reads what is stored.
func (c *changeset) find(id id.RowID) (int, error) {
	if i, ok := c.at[id]; ok {
		return i, nil
	}
	e := effect{id: id}
	if !c.truncated {
		c.key = appendRowKey(c.key[:0], c.on.gen, id)
		old, err := readRow(c.on.db, c.key)
		if err != nil {
			return 0, err
		}
		e.old, e.new = old, old
	}
	c.effects = append(c.effects, e)
	c.at[id] = len(c.effects) - 1
	return len(c.effects) - 1, nil
}

func readRow(db *pebble.DB, key []byte) (row, error) {
	value, closer, err := db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return row{}, nil
	}
	if err != nil {
		return row{}, fmt.Errorf("read stored row: %w", err)
	}
	r, err := parseRow(value)
	return r, errors.Join(err, closer.Close())
}

// emit writes the set into batch and counts the rows in r. Within a batch a
// later write wins, so what follows the TRUNCATE's range deletions stays.
func (c *changeset) emit(batch *pebble.Batch, r *record) error {
	if c.truncated {
		for _, space := range []byte{spaceJoin, spaceRow} {
			start, end := genSpan(space, r.gen)
			if err := batch.DeleteRange(start, end, nil); err != nil {
				return err
			}
		}
		r.rows, r.sum = 0, 0
	}
	for i := range c.effects {
		e := &c.effects[i]
		if e.old == e.new {
			continue
		}
		if err := errors.Join(c.emitJoin(batch, e, r), c.emitRow(batch, e, r)); err != nil {
			return err
		}
	}
	return nil
}

func (c *changeset) emitJoin(batch *pebble.Batch, e *effect, r *record) error {
	if e.old.subscribed() {
		r.rows--
		c.key = appendJoinKey(c.key[:0], r.gen, e.old.restaurant, e.old.client, e.id)
		if err := batch.Delete(c.key, nil); err != nil {
			return err
		}
	}
	if !e.new.subscribed() {
		return nil
	}
	r.rows++
	c.key = appendJoinKey(c.key[:0], r.gen, e.new.restaurant, e.new.client, e.id)
	return batch.Set(c.key, nil, nil)
}

func (c *changeset) emitRow(batch *pebble.Batch, e *effect, r *record) error {
	var sum uint64
	if e.old.stored {
		sum, c.value = e.old.fingerprint(e.id, c.value)
		r.sum -= sum
	}
	c.key = appendRowKey(c.key[:0], r.gen, e.id)
	if !e.new.stored {
		return batch.Delete(c.key, nil)
	}
	sum, c.value = e.new.fingerprint(e.id, c.value)
	r.sum += sum
	c.value = e.new.appendValue(c.value[:0])
	return batch.Set(c.key, c.value, nil)
}
