package record

import (
	"encoding/binary"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
)

// CopySignature opens a binary COPY stream: the signature, no flags, no header
// extension. CopyTrailer ends it: a field count of -1.
// https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format"
const (
	CopySignature = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	CopyTrailer   = "\xff\xff"
)

// CopyFrameSize is about how many bytes one CopyData message carries. The server reads
// a message whole before it parses it, and messages may be cut anywhere.
const CopyFrameSize = 64 << 10

// copyFrameHeader is the length of 'd' and of the int32 length, which counts itself.
const copyFrameHeader = 5

// CopyStream builds the data of one binary COPY as the socket gets it: CopyData
// messages, back to back. Nothing is copied or framed again on the way.
type CopyStream struct {
	buf   []byte
	frame int // where the open frame begins
}

// Begin opens the stream in buf's memory, with room for size bytes of tuples.
func (c *CopyStream) Begin(buf []byte, size int) {
	size += len(CopySignature) + len(CopyTrailer) + copyFrameHeader*(2+size/CopyFrameSize)
	if cap(buf) < size {
		buf = make([]byte, 0, size)
	}
	c.buf = buf[:0]
	c.openFrame()
	c.buf = append(c.buf, CopySignature...)
}

// openFrame begins a CopyData message.
func (c *CopyStream) openFrame() {
	c.frame = len(c.buf)
	c.buf = append(c.buf, 'd', 0, 0, 0, 0)
}

// closeFrame fills in the length of the CopyData message.
func (c *CopyStream) closeFrame() {
	binary.BigEndian.PutUint32(c.buf[c.frame+1:], uint32(len(c.buf)-c.frame-1))
}

// Add appends a campaign's rows, one per client.
func (c *CopyStream) Add(w *Template, clients *id.List) {
	for i := range clients.Len() {
		if len(c.buf)-c.frame >= CopyFrameSize {
			c.closeFrame()
			c.openFrame()
		}
		c.buf = w.appendTuple(c.buf, clients.At(i))
	}
}

// End closes the stream and returns it; the stream is empty if no row was added.
func (c *CopyStream) End() []byte {
	if len(c.buf) == copyFrameHeader+len(CopySignature) {
		return c.buf[:0]
	}
	c.buf = append(c.buf, CopyTrailer...)
	c.closeFrame()
	return c.buf
}

// appendCopyHead appends a binary COPY tuple up to its last field.
func (k *ColumnKinds) appendCopyHead(dst []byte, c *campaign.Campaign, trigger int64) []byte {
	dst = binary.BigEndian.AppendUint16(dst, Columns)
	for i, s := range [...]string{RestaurantColumn: c.RestaurantID, CampaignColumn: c.ID, ContentColumn: c.Content, OwnerColumn: c.Owner, ContactColumn: c.OwnerContact} {
		dst = k[i].appendText(dst, s)
	}
	for i, n := range [...]int64{c.Start, c.End, c.Created, trigger} {
		dst = k[StartColumn+i].appendNumber(dst, n)
	}
	return dst
}

// CopySize estimates the bytes of the clients' rows, closely enough to allocate by.
func (w *Template) CopySize(clients *id.List) int {
	return clients.Len()*(len(w.copyHead)+4) + 3*len(clients.Bytes())
}

// appendTuple appends one feedback row to a binary COPY stream.
func (w *Template) appendTuple(dst []byte, client id.ID) []byte {
	dst = append(dst, w.copyHead...)
	mark := len(dst)
	if w.uuidClients {
		if out, ok := client.AppendUUID(append(dst, 0, 0, 0, 16)); ok {
			return out
		}
		dst = dst[:mark]
	}
	dst = append(dst, 0, 0, 0, 0)
	dst = client.AppendText(dst)
	binary.BigEndian.PutUint32(dst[mark:], uint32(len(dst)-mark-4))
	return dst
}

// AppendField appends one field of a binary COPY tuple.
func AppendField[T ~string | ~[]byte](dst []byte, field T) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(field))), field...)
}

// AppendInt8 appends an int8 as a field of a binary COPY tuple.
func AppendInt8(dst []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(dst, 8), uint64(n))
}

// AppendInt4 appends an int4 as a field of a binary COPY tuple.
func AppendInt4(dst []byte, n int32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(dst, 4), uint32(n))
}

// AppendBool appends a bool as a field of a binary COPY tuple.
func AppendBool(dst []byte, b bool) []byte {
	if b {
		return append(dst, 0, 0, 0, 1, 1)
	}
	return append(dst, 0, 0, 0, 1, 0)
}
