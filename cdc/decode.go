package cdc

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"dinnerbell/state"
)

// The columns that are needed, in the order of decoder.at and of the COPY.
const (
	colID = iota
	colRestaurant
	colClient
	needed
)

// kind tells what a message means for the transaction it is part of.
type kind uint8

const (
	kindOther  kind = iota // a relation, a type, a change of another table
	kindBegin              // lsn: where the commit record starts
	kindChange             // one change was appended
	kindCommit             // lsn: where the commit record ends
)

// event is what one message was.
type event struct {
	kind kind
	lsn  state.LSN
}

// decoder turns pgoutput messages, protocol version 1, into changes. It is
// pure: no IO, no clock, and nothing is kept of a message but copies. Whatever
// bytes come in, it neither panics nor allocates more than they hold.
//
// https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
type decoder struct {
	table   uint32 // OID; changes of other tables in the publication are none of ours
	columns [needed]string
	types   [needed]uint32 // as the catalog has them; 0: any

	known bool        // a Relation message has come in this session
	at    [needed]int // where the needed columns are in a tuple

	// badIDs counts client and restaurant ids that cannot be ids: empty, or
	// not UTF-8 (in a database with encoding SQL_ASCII).
	badIDs int64

	// The last restaurant: rows that are written together tend to share it.
	restaurantText []byte
	restaurantID   state.ID
}

// field is one value of a tuple. data is a view into the message.
type field struct {
	kind byte // 'n' NULL, 'u' unchanged TOAST, 't' text, 0 not in the tuple
	data []byte
}

// tuple holds the needed values of one row version, as pgoutput sent them.
type tuple [needed]field

// decode reads one message, and appends to changes what it does to the table.
// The error wraps errMalformed, or is a *rebuildError if a needed column is
// gone or has another type.
func (d *decoder) decode(msg []byte, changes []state.Change) ([]state.Change, event, error) {
	r := reader{b: msg}
	ev := event{}
	var err error
	switch tag := r.u8(); tag {
	case 'B':
		ev = event{kindBegin, state.LSN(r.u64())}
		r.skip(8 + 4) // commit time, xid
	case 'C':
		r.skip(1 + 8) // flags, start of the commit record
		ev = event{kindCommit, state.LSN(r.u64())}
		r.skip(8) // commit time
	case 'R':
		err = d.relation(&r)
	case 'I', 'U', 'D':
		before := len(changes)
		changes, err = d.row(tag, &r, changes)
		if len(changes) > before {
			ev.kind = kindChange
		}
	case 'T':
		if d.truncates(&r) {
			changes = append(changes, state.Change{Op: state.Truncate})
			ev.kind = kindChange
		}
	case 'M', 'O', 'Y':
		// A logical message (the barrier's nudge; its commit is what counts), an
		// origin, a type.
		return changes, ev, nil
	default:
		return changes, ev, fmt.Errorf("decode message %q: %w", tag, errMalformed)
	}
	if err == nil && r.bad {
		err = fmt.Errorf("decode message %q of %d bytes: %w", msg[:min(1, len(msg))], len(msg), errMalformed)
	}
	return changes, ev, err
}

// relation finds the needed columns by name. Postgres sends a Relation before
// the first change of each session and after each ALTER TABLE.
func (d *decoder) relation(r *reader) error {
	oid := r.u32()
	schema, table := r.text(), r.text()
	r.skip(1) // replica identity
	at := [needed]int{-1, -1, -1}
	for i := range int(r.u16()) {
		r.skip(1) // flags: part of the key
		name, typ := r.text(), r.u32()
		r.skip(4) // type modifier
		if r.bad {
			return nil // decode reports it
		}
		if oid != d.table {
			continue
		}
		for c := range needed {
			if string(name) != d.columns[c] {
				continue
			}
			at[c] = i
			if d.types[c] != 0 && d.types[c] != typ {
				return &rebuildError{fmt.Sprintf("column %s of %s.%s changed its type", name, schema, table)}
			}
		}
	}
	if oid != d.table || r.bad {
		return nil
	}
	for c := range needed {
		if at[c] < 0 {
			return &rebuildError{fmt.Sprintf("column %s of %s.%s is not in the stream", d.columns[c], schema, table)}
		}
	}
	d.at, d.known = at, true
	return nil
}

// row decodes an INSERT, UPDATE or DELETE.
func (d *decoder) row(op byte, r *reader, changes []state.Change) ([]state.Change, error) {
	if r.u32() != d.table {
		return changes, nil
	}
	if !d.known {
		return changes, fmt.Errorf("decode change before its relation: %w", errMalformed)
	}
	var old, now tuple
	tag := r.u8()
	if op != 'I' && (tag == 'K' || tag == 'O') {
		d.tuple(r, &old)
		if op == 'U' {
			tag = r.u8()
		}
	}
	if op != 'D' {
		if tag != 'N' {
			r.bad = true
		}
		d.tuple(r, &now)
		r.bad = r.bad || now[colRestaurant].kind == 0 || now[colClient].kind == 0
	}
	if r.bad {
		return changes, nil
	}
	c, err := d.change(op, &old, &now)
	if err != nil {
		return changes, err
	}
	return append(changes, c), nil
}

// tuple reads the needed columns' values and steps over the others.
func (d *decoder) tuple(r *reader, t *tuple) {
	for i := range int(r.u16()) {
		f := field{kind: r.u8()}
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
		for c := range needed {
			if d.at[c] == i {
				t[c] = f
			}
		}
	}
}

// change builds the change out of the tuple before and the tuple after it.
func (d *decoder) change(op byte, old, now *tuple) (state.Change, error) {
	switch op {
	case 'D':
		row, err := rowID(old[colID])
		return state.Change{Op: state.Delete, Row: row}, err
	case 'I':
		row, err := rowID(now[colID])
		c := state.Change{Op: state.Insert, Row: row}
		c.Restaurant, _ = d.restaurant(now[colRestaurant])
		c.Client, _ = d.id(now[colClient])
		return c, err
	}
	// Under REPLICA IDENTITY FULL the old tuple holds what TOAST left out.
	for c := range needed {
		if now[c].kind == 'u' && old[c].kind == 't' {
			now[c] = old[c]
		}
	}
	row, err := rowID(now[colID])
	if err != nil {
		return state.Change{}, err
	}
	c := state.Change{Op: state.Update, Row: row}
	if old[colID].kind == 't' && !bytes.Equal(old[colID].data, now[colID].data) {
		c.OldRow, _ = rowID(old[colID])
	}
	c.Restaurant, c.KeepRestaurant = d.restaurant(now[colRestaurant])
	c.Client, c.KeepClient = d.id(now[colClient])
	return c, nil
}

// rowID packs the key. Postgres does not let a replica identity be NULL.
func rowID(f field) (state.RowID, error) {
	if f.kind != 't' {
		return "", fmt.Errorf("decode row without its id: %w", errMalformed)
	}
	return state.PackRowID(string(f.data)), nil
}

// id packs a client or restaurant; keep is set for unchanged TOAST. What cannot
// be an id is counted and taken as NULL: such a row is no subscription.
func (d *decoder) id(f field) (id state.ID, keep bool) {
	switch f.kind {
	case 't':
		id, err := state.PackIDBytes(f.data)
		if err != nil {
			d.badIDs++
			return "", false
		}
		return id, false
	case 'u':
		return "", true
	}
	return "", false
}

// restaurant is id with a memory of one.
func (d *decoder) restaurant(f field) (id state.ID, keep bool) {
	if f.kind == 't' && d.restaurantID != "" && bytes.Equal(f.data, d.restaurantText) {
		return d.restaurantID, false
	}
	id, keep = d.id(f)
	if id != "" {
		d.restaurantID, d.restaurantText = id, append(d.restaurantText[:0], f.data...)
	}
	return id, keep
}

// truncates reports whether our table is among those that a TRUNCATE names.
func (d *decoder) truncates(r *reader) bool {
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

// reader walks over a message. Past the end it gives zeros and sets bad, so
// that a caller checks once.
type reader struct {
	b   []byte
	bad bool
}

// bytes gives a view of the next n bytes.
func (r *reader) bytes(n uint32) []byte {
	if uint64(n) > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

// skip steps over n bytes that mean nothing here.
func (r *reader) skip(n uint32) { r.bytes(n) }

func (r *reader) u8() byte {
	if p := r.bytes(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if p := r.bytes(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if p := r.bytes(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if p := r.bytes(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

// text gives a view of a zero-terminated string, without the zero.
func (r *reader) text() []byte {
	end := bytes.IndexByte(r.b, 0)
	if end < 0 {
		r.bad, r.b = true, nil
		return nil
	}
	p := r.b[:end:end]
	r.b = r.b[end+1:]
	return p
}
