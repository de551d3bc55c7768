package pgoutput

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"dinnerbell/state/id"
)

// Binary COPY data begins with copySignature, followed by 32 bits of flags and the
// length of an extension.
// https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4
const (
	copySignature = "PGCOPY\n\xff\r\n\x00"
	copyHeaderLen = len(copySignature) + 4 + 4
	copyOIDs      = 1 << 16
	noValue       = 0xffffffff
)

// CopyReader reads binary COPY data, which may be cut anywhere, and passes the rows
// to Add. It is the io.Writer that pgconn copies to.
type CopyReader struct {
	Integers [NeededColumns]bool // the columns that are sent as integers, not as text
	Pack     *id.Packer
	// Add receives each row, in views into Pack; its error ends the copy.
	Add func(row id.RowID, restaurant, client id.ID) error

	rest   []byte // the incomplete end of the last Write
	header bool   // the header has been read
	Ended  bool   // the trailer has been read
	Rows   int64
	BadIDs int64
	Nulls  int64
}

// Write reads the next data. Postgres sends one row at a time, so that normally
// nothing has to be kept for the next call.
func (r *CopyReader) Write(p []byte) (int, error) {
	data := p
	if len(r.rest) > 0 {
		r.rest = append(r.rest, p...)
		data = r.rest
	}
	for len(data) > 0 && !r.Ended {
		n, err := r.readNext(data)
		if err != nil {
			return 0, err
		}
		if n == 0 {
			break // incomplete
		}
		data = data[n:]
	}
	r.rest = append(r.rest[:0], data...)
	return len(p), nil
}

// readNext reads the header or one row off the front of data and returns its
// length; 0 if it is incomplete.
func (r *CopyReader) readNext(data []byte) (int, error) {
	if !r.header {
		return r.readHeader(data)
	}
	in := byteReader{b: data}
	switch n := in.u16(); {
	case in.bad:
		return 0, nil
	case n == 0xffff:
		r.Ended = true
		return 2, nil
	case n != NeededColumns:
		return 0, fmt.Errorf("read copied row of %d columns: %w", n, ErrMalformed)
	}
	var values [NeededColumns][]byte
	for c := range values {
		if n := in.u32(); n != noValue {
			values[c] = in.bytes(n)
		}
	}
	if in.bad {
		return 0, nil
	}
	return len(data) - len(in.b), r.addRow(values)
}

// readHeader accepts what Postgres 14 and newer send: no OIDs, no extension.
// Anything else would shift every field that follows.
func (r *CopyReader) readHeader(data []byte) (int, error) {
	if len(data) < copyHeaderLen {
		return 0, nil
	}
	flags := binary.BigEndian.Uint32(data[len(copySignature):])
	extension := binary.BigEndian.Uint32(data[len(copySignature)+4:])
	if string(data[:len(copySignature)]) != copySignature || flags&copyOIDs != 0 || extension != 0 {
		return 0, fmt.Errorf("read COPY header: %w", ErrMalformed)
	}
	r.header = true
	return copyHeaderLen, nil
}

// addRow adds one row. As in the stream, a value that cannot be an id is taken as
// NULL.
func (r *CopyReader) addRow(values [NeededColumns][]byte) error {
	var row id.RowID
	var ids [NeededColumns]id.ID
	for c, v := range values {
		if v == nil {
			r.Nulls++ // a key that is NULL ends the copy below
			continue
		}
		if c == KeyColumn {
			var err error
			if row, err = r.packKey(v); err != nil {
				return err
			}
			continue
		}
		id, err := r.packID(v, r.Integers[c])
		if err != nil {
			return err
		}
		ids[c] = id
	}
	if row == "" {
		return fmt.Errorf("read copied row without its id: %w", ErrMalformed)
	}
	r.Rows++
	return r.Add(row, ids[RestaurantColumn], ids[ClientColumn])
}

// packKey packs the key.
func (r *CopyReader) packKey(v []byte) (id.RowID, error) {
	if !r.Integers[KeyColumn] {
		return r.Pack.RowID(v), nil
	}
	n, err := parseInteger(v)
	if err != nil {
		return "", err
	}
	return r.Pack.RowNumber(n), nil
}

// packID packs a restaurant or client; "" for a value that cannot be an id.
func (r *CopyReader) packID(v []byte, isInteger bool) (id.ID, error) {
	if isInteger {
		n, err := parseInteger(v)
		if err != nil {
			return "", err
		}
		v = strconv.AppendInt(nil, n, 10) // as pgoutput spells it
	}
	id, err := r.Pack.ID(v)
	if err != nil {
		r.BadIDs++
	}
	return id, nil
}

// parseInteger reads a binary integer.
func parseInteger(v []byte) (int64, error) {
	switch len(v) {
	case 2:
		return int64(int16(binary.BigEndian.Uint16(v))), nil
	case 4:
		return int64(int32(binary.BigEndian.Uint32(v))), nil
	case 8:
		return int64(binary.BigEndian.Uint64(v)), nil
	}
	return 0, fmt.Errorf("read integer of %d bytes: %w", len(v), ErrMalformed)
}
