package state

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// Scan reads subscriptions as of the moment when it was made, whatever is applied,
// loaded or truncated after it, and the delivered pairs of that moment or later. It has
// one owner. It pins files: close it soon.
type Scan struct {
	s         *Store
	gen       uint32
	end       id.LSN
	subs      *pebble.Iterator
	delivered *pebble.Iterator

	skipped, own int // see Skipped

	// State of the call under way.
	prefix  []byte // of the restaurant's join keys
	seek    []byte
	last    []byte // the last client that was read
	mark    []byte // prefix of the campaign's delivered keys, then scratch memory
	markLen int
	marked  bool // the iterator delivered is at a key
}

// lookRatio bounds the rows that a call reads: lookRatio times its limit. Further rows
// of a client, and clients who were notified before, yield nothing.
const lookRatio = 16

// NewScan returns a reader of the present state.
func (s *Store) NewScan() (*Scan, error) {
	done, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer done()
	s.mu.RLock()
	gen, end := s.view.gen, s.view.end
	subs, err := s.rowReaderLocked().NewIter(&pebble.IterOptions{KeyTypes: pebble.IterKeyTypePointsOnly})
	s.mu.RUnlock()
	if err != nil {
		return nil, s.checkDamage(fmt.Errorf("scan subscriptions: %w", err))
	}
	// While a long transaction is applied, subs reads an old snapshot. The newest
	// delivered pairs are always better.
	delivered, err := s.db.NewIter(&pebble.IterOptions{KeyTypes: pebble.IterKeyTypePointsOnly})
	if err != nil {
		return nil, s.checkDamage(errors.Join(fmt.Errorf("scan delivered pairs: %w", err), subs.Close()))
	}
	return &Scan{s: s, gen: gen, end: end, subs: subs, delivered: delivered}, nil
}

// End returns the end of the last transaction that the scan sees, as [Store.EndLSN]
// was when the scan was made.
func (c *Scan) End() id.LSN { return c.end }

// Undelivered appends to dst up to limit distinct clients of restaurant that come after
// the client after (from the start if after is ""), in packed order, and are not marked
// as delivered for campaign. With campaign "" it appends all clients.
//
// last is the last client that was read, delivered or not, and equals after if there was
// none: pass it as after to continue. done reports that there are no more clients. A call
// may append nothing and not be done, because it reads a bounded number of rows.
func (c *Scan) Undelivered(dst *id.List, campaign, restaurant, after id.ID, limit int) (last id.ID, done bool, err error) {
	if c.subs == nil {
		return after, false, ErrClosed
	}
	release, err := c.s.acquire()
	if err != nil {
		return after, false, err
	}
	defer release()
	if restaurant == "" || limit <= 0 {
		return after, restaurant == "", nil
	}
	c.seekRestaurant(restaurant, after)
	c.seekDelivered(campaign, after)
	c.skipped, c.own = 0, 0
	done, err = c.mergeUndelivered(dst, limit)
	if err = errors.Join(err, c.subs.Error(), c.delivered.Error()); err != nil {
		return after, false, c.s.checkDamage(fmt.Errorf("scan subscriptions: %w", err))
	}
	return id.ID(c.last), done, nil
}

// Skipped returns how many clients the last call of Undelivered left out because they
// are marked as delivered, and how many of these are marked as own.
func (c *Scan) Skipped() (all, own int) { return c.skipped, c.own }

// Subscribed appends to dst those of clients who are subscribed to restaurant, in the
// order of clients. It costs a seek for each client.
func (c *Scan) Subscribed(dst *id.List, restaurant id.ID, clients []id.ID) error {
	if c.subs == nil {
		return ErrClosed
	}
	release, err := c.s.acquire()
	if err != nil {
		return err
	}
	defer release()
	c.seekRestaurant(restaurant, "")
	for _, client := range clients {
		c.seek = append(append(c.seek[:0], c.prefix...), client...)
		if c.subs.SeekGE(c.seek) && bytes.HasPrefix(c.subs.Key(), c.seek) {
			dst.Append(client)
		}
	}
	if err := c.subs.Error(); err != nil {
		return c.s.checkDamage(fmt.Errorf("look for subscriptions: %w", err))
	}
	return nil
}

// seekRestaurant bounds the iterator subs to the restaurant's keys behind the client
// after.
func (c *Scan) seekRestaurant(restaurant, after id.ID) {
	c.prefix = appendJoinPrefix(c.prefix[:0], c.gen, restaurant)
	c.seek = prefixEnd(c.seek[:0], c.prefix)
	c.subs.SetBounds(c.prefix, c.seek) // Pebble copies the bounds
	c.last = append(c.last[:0], after...)
	c.seek = appendSeekKey(c.seek[:0], c.prefix, after)
}

// seekDelivered moves the iterator delivered to the first pair behind the client after.
func (c *Scan) seekDelivered(campaign, after id.ID) {
	c.marked = false
	if campaign == "" {
		return
	}
	c.mark = appendDeliveredPrefix(c.mark[:0], campaign)
	c.markLen = len(c.mark)
	c.mark = prefixEnd(c.mark, c.mark[:c.markLen])
	c.delivered.SetBounds(c.mark[:c.markLen], c.mark[c.markLen:])
	c.mark = appendSeekKey(c.mark[:c.markLen], c.mark[:c.markLen:c.markLen], after)
	c.marked = c.delivered.SeekGE(c.mark[c.markLen:])
	c.mark = c.mark[:c.markLen]
}

// appendSeekKey appends to dst the first key that a client behind after can have.
func appendSeekKey(dst, prefix []byte, after id.ID) []byte {
	start := len(dst)
	dst = append(append(dst, prefix...), after...)
	if after == "" {
		return dst
	}
	end := len(dst)
	dst = prefixEnd(dst, dst[start:end])
	return append(dst[:start], dst[end:]...)
}

// mergeUndelivered reads both iterators once, in step: both are sorted by client.
func (c *Scan) mergeUndelivered(dst *id.List, limit int) (done bool, err error) {
	full, looked := dst.Len()+limit, 0
	for ok := c.subs.SeekGE(c.seek); ok; ok = c.subs.Next() {
		client := joinClient(c.subs.Key(), len(c.prefix))
		if client == nil {
			return false, fmt.Errorf("read join key %x: %w", c.subs.Key(), ErrCorrupt)
		}
		if dst.Len() == full || looked >= limit*lookRatio {
			return false, nil
		}
		looked++
		if bytes.Equal(client, c.last) {
			continue // another row of the same pair
		}
		c.last = append(c.last[:0], client...)
		if c.wasDelivered(client) {
			c.skipped++
			if len(c.delivered.Value()) > 0 {
				c.own++
			}
		} else {
			dst.AppendBytes(client)
		}
	}
	return true, nil
}

// wasDelivered moves the iterator delivered up to client and reports whether the client
// is there.
func (c *Scan) wasDelivered(client []byte) bool {
	const near = 8 // steps that cost about as much as a seek
	for steps := 0; c.marked; steps++ {
		switch cmp := bytes.Compare(c.delivered.Key()[c.markLen:], client); {
		case cmp == 0:
			return true
		case cmp > 0:
			return false
		case steps < near:
			c.marked = c.delivered.Next()
		default:
			c.mark = append(c.mark[:c.markLen], client...)
			c.marked = c.delivered.SeekGE(c.mark)
		}
	}
	return false
}

// Close releases the files that the scan pins.
func (c *Scan) Close() error {
	if c.subs == nil {
		return nil
	}
	err := errors.Join(c.subs.Close(), c.delivered.Close())
	c.subs, c.delivered = nil, nil
	if err != nil {
		return c.s.checkDamage(fmt.Errorf("close scan: %w", err))
	}
	return nil
}

// Audience counts the distinct clients of a restaurant.
func (s *Store) Audience(restaurant id.ID) (int64, error) {
	scan, err := s.NewScan()
	if err != nil {
		return 0, err
	}
	n, err := scan.countAudience(restaurant)
	return n, errors.Join(err, scan.Close())
}

func (c *Scan) countAudience(restaurant id.ID) (n int64, err error) {
	var list id.List
	const step = 4096
	for after, done := id.ID(""), false; !done; {
		list.Reset()
		if after, done, err = c.Undelivered(&list, "", restaurant, after, step); err != nil {
			return 0, err
		}
		n += int64(list.Len())
	}
	return n, nil
}

// SimilarRestaurant finds a restaurant with subscriptions whose id differs from the given
// id but may be equal in SQL: another spelling of a UUID (a uuid column returns the
// canonical one), blanks at the end (a char(n) column ignores them), other letter case
// (citext, a collation that ignores case; the search tries all lower and all upper case
// only). It costs a few seeks.
func (s *Store) SimilarRestaurant(restaurant string) (id string, found bool, err error) {
	scan, err := s.NewScan()
	if err != nil {
		return "", false, err
	}
	id, found, err = scan.findSimilar(restaurant)
	return id, found, errors.Join(err, scan.Close())
}

func (c *Scan) findSimilar(restaurant string) (id string, found bool, err error) {
	trimmed := strings.TrimRight(restaurant, " ")
	spellings := []string{trimmed, strings.ToLower(trimmed), strings.ToUpper(trimmed)}
	if uuid, ok := canonicalUUID(trimmed); ok {
		spellings = append(spellings, uuid, strings.ToUpper(uuid))
	}
	slices.Sort(spellings)
	for _, text := range slices.Compact(spellings) {
		for _, padded := range []bool{false, true} {
			if id, err = c.firstRestaurant(text, padded); err != nil {
				return "", false, err
			}
			if id != "" && id != restaurant {
				return id, true, nil
			}
		}
	}
	return "", false, nil
}

// firstRestaurant returns text if that restaurant has subscriptions. With padded it
// returns the first restaurant whose id is text and blanks. It returns "" if there is
// none.
func (c *Scan) firstRestaurant(text string, padded bool) (string, error) {
	release, err := c.s.acquire()
	if err != nil {
		return "", err
	}
	defer release()
	packed, err := id.Pack(text)
	if err != nil {
		return "", nil // text cannot be an id, so no restaurant has it
	}
	if padded {
		packed = id.TextPrefix(text + " ")
	}
	start := appendJoinPrefix(nil, c.gen, packed)
	c.subs.SetBounds(start, prefixEnd(nil, start))
	if !c.subs.First() {
		return "", c.checkSimilar(c.subs.Error())
	}
	key := bytes.TrimPrefix(c.subs.Key(), appendGen(nil, spaceJoin, c.gen))
	n := id.PackedLen(key)
	if n == 0 {
		return "", c.checkSimilar(fmt.Errorf("read join key %x: %w", c.subs.Key(), ErrCorrupt))
	}
	if id := id.ID(key[:n]).Text(); strings.TrimRight(id, " ") == text {
		return id, nil
	}
	return "", nil
}

func (c *Scan) checkSimilar(err error) error {
	if err == nil {
		return nil
	}
	return c.s.checkDamage(fmt.Errorf("look for a similar restaurant: %w", err))
}

// canonicalUUID returns the canonical spelling of a text that Postgres' uuid type accepts:
// any letter case, braces, a hyphen after any group of four digits.
// https://www.postgresql.org/docs/current/datatype-uuid.html
func canonicalUUID(text string) (string, bool) {
	if strings.HasPrefix(text, "{") && strings.HasSuffix(text, "}") {
		text = text[1 : len(text)-1]
	}
	digits := strings.ToLower(strings.ReplaceAll(text, "-", ""))
	if len(digits) != 32 || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", false
	}
	return digits[:8] + "-" + digits[8:12] + "-" + digits[12:16] + "-" + digits[16:20] + "-" + digits[20:], true
}

// ownMark is the value of a delivered pair whose client is own; other values are empty.
var ownMark = []byte{1}

// MarkDelivered stores, under a name, that clients have got a campaign. own: they have got
// it from the campaign that is joined under this name, and not for another restaurant or
// from another job. It does not sync: the delivered pairs are a cache, and pairs that a
// crash loses cost time, not a second notification.
func (s *Store) MarkDelivered(name id.ID, clients *id.List, own bool) error {
	done, err := s.acquire()
	if err != nil {
		return err
	}
	defer done()
	if name == "" || clients.Len() == 0 {
		return nil
	}
	if err := s.disk.checkRoom(0); err != nil {
		return err
	}
	batch := s.db.NewBatch()
	defer batch.Close()
	key := appendDeliveredPrefix(nil, name)
	prefix := len(key)
	var value []byte
	if own {
		value = ownMark
	}
	for i := range clients.Len() {
		key = append(key[:prefix], clients.At(i)...)
		if err := batch.Set(key, value, nil); err != nil {
			return fmt.Errorf("mark delivered: %w", err)
		}
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("mark delivered: %w", err)
	}
	return nil
}

// ForgetDelivered drops the pairs that were marked under the names.
func (s *Store) ForgetDelivered(names ...id.ID) error {
	if len(names) == 0 {
		return nil
	}
	prefixes := make([][]byte, len(names))
	for i, name := range names {
		prefixes[i] = appendDeliveredPrefix(nil, name)
	}
	return s.dropDelivered(prefixes)
}

// ForgetAllDelivered drops all pairs.
func (s *Store) ForgetAllDelivered() error {
	return s.dropDelivered([][]byte{{spaceDelivered}})
}

func (s *Store) dropDelivered(prefixes [][]byte) error {
	done, err := s.acquire()
	if err != nil {
		return err
	}
	defer done()
	batch := s.db.NewBatch()
	defer batch.Close()
	for _, prefix := range prefixes {
		if err := batch.DeleteRange(prefix, prefixEnd(nil, prefix), nil); err != nil {
			return s.checkDamage(fmt.Errorf("forget delivered pairs: %w", err))
		}
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return s.checkDamage(fmt.Errorf("forget delivered pairs: %w", err))
	}
	return nil
}

// Delivered counts the delivered pairs. It reads all of them.
func (s *Store) Delivered() (n int, err error) {
	done, err := s.acquire()
	if err != nil {
		return 0, err
	}
	defer done()
	space := []byte{spaceDelivered}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: space, UpperBound: prefixEnd(nil, space)})
	if err != nil {
		return 0, s.checkDamage(fmt.Errorf("count delivered pairs: %w", err))
	}
	for ok := it.First(); ok; ok = it.Next() {
		n++
	}
	if err := it.Close(); err != nil {
		return 0, s.checkDamage(fmt.Errorf("count delivered pairs: %w", err))
	}
	return n, nil
}
