package pgoutput

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"dinnerbell/state/id"
)

// The needed columns, in the order of messageDecoder.at and of the COPY. The
// further columns of a composite key follow; in the COPY the key is one value.
const (
	KeyColumn = iota
	RestaurantColumn
	ClientColumn
	NeededColumns
)

// bpcharOID is the OID of the type char(n), as in package pgtype of pgx.
const bpcharOID = 1042

// IsKeyColumn reports whether a needed column is part of the key.
func IsKeyColumn(c int) bool { return c == KeyColumn || c >= NeededColumns }

// messageKind is the meaning of a message for its transaction.
type messageKind uint8

const (
	kindOther  messageKind = iota // a relation, a type, a change of another table
	kindBegin                     // lsn: where the commit record starts
	kindChange                    // one change was appended
	kindCommit                    // lsn: where the commit record ends
)

// messageEvent describes one message.
type messageEvent struct {
	kind messageKind
	lsn  id.LSN
	at   int64 // of a commit: its time, in microseconds since 2000
}

// messageDecoder turns pgoutput messages, protocol version 1, into changes. It is
// pure: no IO, no clock, and it keeps nothing of a message but copies. Whatever
// bytes come in, it neither panics nor allocates more than they hold.
//
// https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
type messageDecoder struct {
	table   uint32 // OID; changes of other tables in the publication are ignored
	columns []string

	at       []int    // the places of the needed columns in a tuple; nil: no Relation message has come yet
	padded   []bool   // the needed columns of type char(n)
	old, now rowTuple // of the present message
	key      []byte

	// badIDs counts client and restaurant ids that cannot be ids: empty, too long,
	// or not UTF-8 (in a database with encoding SQL_ASCII). nulls counts ids that
	// are NULL. A row with either is no subscription.
	badIDs, nulls int64

	// The last restaurant: rows that are written together tend to share it.
	restaurantText []byte
	restaurantID   id.ID
}

// tupleField is one value of a tuple. data is a view into the message.
type tupleField struct {
	kind byte // 'n' NULL, 'u' unchanged TOAST, 't' text, 0 not in the tuple
	data []byte
}

// rowTuple holds the needed values of one row version, as pgoutput sent them.
type rowTuple []tupleField

// newMessageDecoder returns a decoder for a table and its needed columns.
func newMessageDecoder(table uint32, columns []string) messageDecoder {
	return messageDecoder{table: table, columns: columns, old: make(rowTuple, len(columns)), now: make(rowTuple, len(columns)), padded: make([]bool, len(columns))}
}

// decodeMessage reads one message, and appends its changes of the table to changes.
// The error wraps ErrMalformed, or is a *NewSnapshotError if a needed column is
// gone or a change has no key, and so will fail the next time too.
func (d *messageDecoder) decodeMessage(msg []byte, changes []id.Change) ([]id.Change, messageEvent, error) {
	r := byteReader{b: msg}
	ev := messageEvent{}
	var err error
	switch tag := r.u8(); tag {
	case 'B':
		ev = messageEvent{kind: kindBegin, lsn: id.LSN(r.u64())}
		r.skip(8 + 4) // commit time, xid
	case 'C':
		r.skip(1 + 8) // flags, start of the commit record
		ev = messageEvent{kind: kindCommit, lsn: id.LSN(r.u64())}
		ev.at = int64(r.u64())
	case 'R':
		err = d.readRelation(&r)
	case 'I', 'U', 'D':
		before := len(changes)
		changes, err = d.readRow(tag, &r, changes)
		if len(changes) > before {
			ev.kind = kindChange
		}
	case 'T':
		if d.namesTable(&r) {
			changes = append(changes, id.Change{Op: id.Truncate})
			ev.kind = kindChange
		}
	case 'M', 'O', 'Y':
		// A logical message (the nudge of the barrier: only its commit matters), an
		// origin, a type.
		return changes, ev, nil
	default:
		return changes, ev, fmt.Errorf("decode message %q: %w", tag, ErrMalformed)
	}
	if err == nil && r.bad {
		err = fmt.Errorf("decode message %q of %d bytes: %w", msg[:min(1, len(msg))], len(msg), ErrMalformed)
	}
	return changes, ev, err
}

// readRelation finds the needed columns by name. Postgres sends a Relation before
// the first change of each session and after each ALTER TABLE.
func (d *messageDecoder) readRelation(r *byteReader) error {
	oid := r.u32()
	schema, table := r.cstring(), r.cstring()
	r.skip(1) // replica identity
	at := slices.Repeat([]int{-1}, len(d.columns))
	for i := range int(r.u16()) {
		r.skip(1) // flags: part of the key
		name, typ := r.cstring(), r.u32()
		r.skip(4) // the type's modifier; the mirror notices changes of type in the catalogs
		if r.bad {
			return nil // decodeMessage reports it
		}
		if oid != d.table {
			continue
		}
		for c := range at {
			if string(name) != d.columns[c] {
				continue
			}
			at[c], d.padded[c] = i, typ == bpcharOID
		}
	}
	if oid != d.table || r.bad {
		return nil
	}
	for c := range at {
		if at[c] < 0 {
			return &NewSnapshotError{Reason: fmt.Sprintf("column %s of %s.%s is not in the stream", d.columns[c], schema, table)}
		}
	}
	d.at = at
	return nil
}

// readRow decodes an INSERT, UPDATE or DELETE.
func (d *messageDecoder) readRow(op byte, r *byteReader, changes []id.Change) ([]id.Change, error) {
	if r.u32() != d.table {
		return changes, nil
	}
	if d.at == nil {
		return changes, fmt.Errorf("decode change before its relation: %w", ErrMalformed)
	}
	clear(d.old)
	clear(d.now)
	tag := r.u8()
	if op != 'I' && (tag == 'K' || tag == 'O') {
		d.readTuple(r, d.old)
		if op == 'U' {
			tag = r.u8()
		}
	}
	if op != 'D' {
		if tag != 'N' {
			r.bad = true
		}
		d.readTuple(r, d.now)
		r.bad = r.bad || d.now[RestaurantColumn].kind == 0 || d.now[ClientColumn].kind == 0
	}
	if r.bad {
		return changes, nil
	}
	c, err := d.buildChange(op, d.old, d.now)
	if err != nil {
		return changes, err
	}
	return append(changes, c), nil
}

// readTuple reads the needed columns' values and steps over the others.
func (d *messageDecoder) readTuple(r *byteReader, t rowTuple) {
	for i := range int(r.u16()) {
		f := tupleField{kind: r.u8()}
		switch f.kind {
		case 'n', 'u':
		case 't':
			f.data = r.bytes(r.u32())
		default:
			r.bad = true // 'b' comes only with the binary option
		}
		if r.bad {
			return
		}
		for c := range t {
			if d.at[c] == i {
				t[c] = f
			}
		}
	}
}

// buildChange builds the change out of the tuple before and the tuple after it.
func (d *messageDecoder) buildChange(op byte, old, now rowTuple) (id.Change, error) {
	switch op {
	case 'D':
		row, err := d.packKey(old)
		return id.Change{Op: id.Delete, Row: row}, err
	case 'I':
		row, err := d.packKey(now)
		c := id.Change{Op: id.Insert, Row: row}
		c.Restaurant, _ = d.packRestaurant(now[RestaurantColumn])
		c.Client, _ = d.packID(ClientColumn, now[ClientColumn])
		return c, err
	}
	// The old tuple holds the values that TOAST left out: all of them under REPLICA
	// IDENTITY FULL; of the key always.
	for c := range now {
		if now[c].kind == 'u' && old[c].kind == 't' {
			now[c] = old[c]
		}
	}
	row, err := d.packKey(now)
	if err != nil {
		return id.Change{}, err
	}
	c := id.Change{Op: id.Update, Row: row}
	if old[KeyColumn].kind != 0 {
		if was, err := d.packKey(old); err != nil {
			return id.Change{}, err
		} else if was != row {
			c.OldRow = was
		}
	}
	c.Restaurant, c.KeepRestaurant = d.packRestaurant(now[RestaurantColumn])
	c.Client, c.KeepClient = d.packID(ClientColumn, now[ClientColumn])
	return c, nil
}

// packKey packs the key. Postgres does not let a replica identity be NULL; an
// identity that was another one for a while may have had no key column. The parts
// of a composite key are escaped and joined as copyKey of package tablecopy does it
// in SQL.
func (d *messageDecoder) packKey(t rowTuple) (id.RowID, error) {
	d.key = d.key[:0]
	for c := range t {
		switch {
		case !IsKeyColumn(c):
			continue
		case t[c].kind != 't':
			return "", &NewSnapshotError{Reason: fmt.Sprintf("a change came without key column %q: the replica identity did not have it", d.columns[c])}
		case len(t) == NeededColumns: // not composite
			return id.PackRow(string(t[c].data)), nil
		case c != KeyColumn:
			d.key = append(d.key, ':')
		}
		for _, b := range t[c].data {
			switch b {
			case '%':
				d.key = append(d.key, "%25"...)
			case ':':
				d.key = append(d.key, "%3A"...)
			default:
				d.key = append(d.key, b)
			}
		}
	}
	return id.PackRow(string(d.key)), nil
}

// packID packs a client or restaurant; keep is set for unchanged TOAST. A value
// that cannot be an id is counted and taken as NULL: such a row is no subscription.
// The blanks that pad char(n) do not count in SQL, and go with a cast to text.
func (d *messageDecoder) packID(c int, f tupleField) (packed id.ID, keep bool) {
	switch f.kind {
	case 't':
		if d.padded[c] {
			f.data = bytes.TrimRight(f.data, " ")
		}
		id, err := id.PackBytes(f.data)
		if err != nil {
			d.badIDs++
			return "", false
		}
		return id, false
	case 'u':
		return "", true
	}
	d.nulls++
	return "", false
}

// packRestaurant is packID that remembers the last restaurant.
func (d *messageDecoder) packRestaurant(f tupleField) (id id.ID, keep bool) {
	if f.kind == 't' && d.restaurantID != "" && bytes.Equal(f.data, d.restaurantText) {
		return d.restaurantID, false
	}
	id, keep = d.packID(RestaurantColumn, f)
	if id != "" {
		d.restaurantID, d.restaurantText = id, append(d.restaurantText[:0], f.data...)
	}
	return id, keep
}

// namesTable reports whether a TRUNCATE names the table.
func (d *messageDecoder) namesTable(r *byteReader) bool {
	n := r.u32()
	r.skip(1) // CASCADE, RESTART IDENTITY
	ours := false
	for range n {
		oid := r.u32()
		if r.bad {
			return false
		}
		ours = ours || oid == d.table
	}
	return ours
}

// byteReader reads a message from front to back. Past the end it returns zeros and
// sets bad, so that a caller checks once.
type byteReader struct {
	b   []byte
	bad bool
}

// bytes returns a view of the next n bytes.
func (r *byteReader) bytes(n uint32) []byte {
	if uint64(n) > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

// skip steps over n bytes.
func (r *byteReader) skip(n uint32) { r.bytes(n) }

func (r *byteReader) u8() byte {
	if p := r.bytes(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *byteReader) u16() uint16 {
	if p := r.bytes(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (r *byteReader) u32() uint32 {
	if p := r.bytes(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (r *byteReader) u64() uint64 {
	if p := r.bytes(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

// cstring returns a view of a zero-terminated string, without the zero.
func (r *byteReader) cstring() []byte {
	end := bytes.IndexByte(r.b, 0)
	if end < 0 {
		r.bad, r.b = true, nil
		return nil
	}
	p := r.b[:end:end]
	r.b = r.b[end+1:]
	return p
}
