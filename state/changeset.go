package state

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// changeSet is the net effect of a batch of changes: for each row, the stored row and
// the row that replaces it. So a later change of a row sees an earlier change, and
// the order of writes does not matter, except that a TRUNCATE comes first.
type changeSet struct {
	target    changeTarget
	truncated bool
	effects   []rowEffect
	at        map[id.RowID]int // index into effects
	key       []byte           // scratch
	value     []byte           // scratch
}

type rowEffect struct {
	id       id.RowID
	old, new storedRow
}

// changeTarget is the stored rows of one generation, to which changes apply.
type changeTarget struct {
	db  *pebble.DB
	gen uint32
	// repeated: the changes may be of a transaction that was applied in part before.
	repeated bool
	// log receives what the changes do to pairs; nil: nothing does.
	log *logBuilder
}

// collectChanges replaces the set with the effects of changes on the rows of target.
func (c *changeSet) collectChanges(target changeTarget, changes []id.Change) error {
	c.clearEffects()
	c.target, c.truncated = target, false
	return c.addChanges(changes)
}

// collectTransactions is collectChanges with the ends of the transactions for the log.
// endsParts: the batch may end a transaction of which the log has parts.
func (c *changeSet) collectTransactions(target changeTarget, b *Batch, endsParts bool) error {
	c.clearEffects()
	c.target, c.truncated = target, false
	ends := b.Transactions
	if len(ends) == 0 {
		ends = []TransactionEnd{{Changes: len(b.Changes), End: b.End}}
	}
	rest := b.Changes
	for i := range ends {
		n := ends[i].Changes
		if n < 0 || n > len(rest) {
			return fmt.Errorf("batch up to %s: transaction %s has %d changes of %d", b.End, ends[i].End, n, len(rest))
		}
		if err := c.addChanges(rest[:n]); err != nil {
			return err
		}
		target.log.endTransaction(&ends[i], endsParts && i == 0 && b.End != 0)
		rest = rest[n:]
	}
	if last := ends[len(ends)-1].End; len(rest) > 0 || last != b.End {
		return fmt.Errorf("batch up to %s: its last transaction ends at %s, and %d changes are left", b.End, last, len(rest))
	}
	return nil
}

func (c *changeSet) addChanges(changes []id.Change) error {
	for i := range changes {
		if err := c.addChange(&changes[i]); err != nil {
			return fmt.Errorf("apply %s of row %s: %w", changes[i].Op, changes[i].Row.Text(), err)
		}
	}
	return nil
}

// clearEffects empties the set. It does not keep a map or a slice that one huge batch
// has grown.
func (c *changeSet) clearEffects() {
	const keep = 1 << 14
	if c.at == nil || len(c.effects) > keep {
		c.effects, c.at = nil, make(map[id.RowID]int)
		return
	}
	clear(c.effects)
	c.effects = c.effects[:0]
	clear(c.at)
}

func (c *changeSet) addChange(ch *id.Change) error {
	if ch.Op == id.Truncate {
		c.clearEffects()
		c.truncated = true
		if c.target.log != nil {
			c.target.log.addTruncate()
		}
		return nil
	}
	if ch.Row == "" {
		return errors.New("change without a row id")
	}
	switch ch.Op {
	case id.Insert:
		return c.setRow(ch.Row, storedRow{ch.Restaurant, ch.Client, true})
	case id.Update:
		return c.addUpdate(ch)
	case id.Delete:
		return c.setRow(ch.Row, storedRow{})
	default: // a Truncate does not come here
		return fmt.Errorf("unknown operation %s", ch.Op)
	}
}

func (c *changeSet) addUpdate(ch *id.Change) error {
	moved := ch.OldRow != "" && ch.OldRow != ch.Row
	next := storedRow{ch.Restaurant, ch.Client, true}
	if ch.KeepRestaurant || ch.KeepClient {
		from := ch.Row
		if moved {
			from = ch.OldRow
		}
		i, err := c.findEffect(from)
		if err != nil {
			return err
		}
		if next, err = keepValues(ch, c.effects[i].new, moved, c.target.repeated); err != nil {
			return err
		}
	}
	if moved {
		if err := c.setRow(ch.OldRow, storedRow{}); err != nil {
			return err
		}
	}
	return c.setRow(ch.Row, next)
}

// keepValues returns the new row of an update that leaves values of old alone.
//
// When a transaction is repeated over its own half-applied effects, a row may be
// deleted already. Then a later change of the transaction deletes it again, and the
// row stays deleted until then. But where the update changes the key, the row under
// the old key may be another row that the transaction moved there. The row that was
// there before is lost, and only a rebuild restores it.
func keepValues(ch *id.Change, old storedRow, moved, repeated bool) (storedRow, error) {
	switch {
	case repeated && moved:
		return storedRow{}, ErrTorn
	case repeated && !old.stored:
		return storedRow{}, nil
	case !old.stored:
		return storedRow{}, ErrMissingRow
	}
	next := storedRow{ch.Restaurant, ch.Client, true}
	if ch.KeepRestaurant {
		next.restaurant = old.restaurant
	}
	if ch.KeepClient {
		next.client = old.client
	}
	return next, nil
}

func (c *changeSet) setRow(id id.RowID, to storedRow) error {
	i, err := c.findEffect(id)
	if err != nil {
		return err
	}
	e := &c.effects[i]
	if c.target.log != nil {
		c.target.log.addEffect(e.new, to, c.target.repeated)
	}
	e.new = to
	return nil
}

// findEffect returns the index of a row's effect. For a row that is new to the set it
// reads the stored row.
func (c *changeSet) findEffect(id id.RowID) (int, error) {
	if i, ok := c.at[id]; ok {
		return i, nil
	}
	e := rowEffect{id: id}
	if !c.truncated {
		c.key = appendRowKey(c.key[:0], c.target.gen, id)
		old, err := readRow(c.target.db, c.key)
		if err != nil {
			return 0, err
		}
		e.old, e.new = old, old
	}
	c.effects = append(c.effects, e)
	c.at[id] = len(c.effects) - 1
	return len(c.effects) - 1, nil
}

func readRow(db *pebble.DB, key []byte) (storedRow, error) {
	value, closer, err := db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return storedRow{}, nil
	}
	if err != nil {
		return storedRow{}, fmt.Errorf("read stored row: %w", err)
	}
	r, err := parseRow(value)
	return r, errors.Join(err, closer.Close())
}

// writeTo writes the set into batch and adds it to the counts of r. Within a batch a
// later write wins, so that writes behind a TRUNCATE's range deletions stay.
func (c *changeSet) writeTo(batch *pebble.Batch, r *stateRecord) error {
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
		if err := errors.Join(c.writeJoin(batch, e, r), c.writeRow(batch, e, r)); err != nil {
			return err
		}
	}
	return nil
}

func (c *changeSet) writeJoin(batch *pebble.Batch, e *rowEffect, r *stateRecord) error {
	if e.old.isSubscription() {
		r.rows--
		c.key = appendJoinKey(c.key[:0], r.gen, e.old.restaurant, e.old.client, e.id)
		if err := batch.Delete(c.key, nil); err != nil {
			return err
		}
	}
	if !e.new.isSubscription() {
		return nil
	}
	r.rows++
	c.key = appendJoinKey(c.key[:0], r.gen, e.new.restaurant, e.new.client, e.id)
	return batch.Set(c.key, nil, nil)
}

func (c *changeSet) writeRow(batch *pebble.Batch, e *rowEffect, r *stateRecord) error {
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
