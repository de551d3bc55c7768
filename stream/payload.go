package stream

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
)

// A payload is what one outbox row holds: exactly whom one step notified and
// what it refused, enough to render byte-identical records again.
//
//	magic "DB" | version u8 | body | crc32c(all before) u32 BE
//	body    = segment count, segments, dead letter count, dead letters
//	segment = trigger, start, end, created, campaign, restaurant, content, owner, contact,
//	          client count, length of the packed clients, packed clients (id.ID, back to back)
//	dead    = partition, offset, timestamp ms, reason, topic, nil flag, key, nil flag, value, headers
//
// Counts and lengths are uvarints, times and positions varints, strings carry
// their length before them.
const (
	payloadMagic   = "DB"
	payloadVersion = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// segment is one campaign's share of a step.
type segment struct {
	campaign *campaign.Campaign
	trigger  int64 // Unix second of the decision
	clients  *id.List
	wire     *wire // rendered by seal; nil until needed where it was read from the outbox
}

// rendered gives the segment's constant parts.
func (s *segment) rendered() *wire {
	if s.wire == nil {
		s.wire = render(s.campaign, s.trigger)
	}
	return s.wire
}

// deadLetter is one refused message, value untouched.
type deadLetter struct {
	topic     string
	partition int32
	offset    int64
	timestamp int64 // milliseconds, as the record carried it
	reason    string
	key       []byte // nil and empty differ in Kafka
	value     []byte
	headers   []header

	clients int64 // it names so many clients who were left out, and refuses no message; not stored
}

type header struct {
	key   string
	value []byte
}

// payload is the decoded form of an outbox row.
type payload struct {
	seq      int64
	segments []segment
	dead     []deadLetter
}

// notifications counts the records that the payload stands for, dead letters aside.
func (p *payload) notifications() int {
	n := 0
	for i := range p.segments {
		n += p.segments[i].clients.Len()
	}
	return n
}

// encode gives the stored form of p (without its seq, which is the row's key).
func (p *payload) encode() []byte {
	dst := append(make([]byte, 0, p.encodedSize()), payloadMagic...)
	dst = append(dst, payloadVersion)
	dst = binary.AppendUvarint(dst, uint64(len(p.segments)))
	for i := range p.segments {
		dst = p.segments[i].encode(dst)
	}
	dst = binary.AppendUvarint(dst, uint64(len(p.dead)))
	for i := range p.dead {
		dst = p.dead[i].encode(dst)
	}
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst, castagnoli))
}

// encodedSize is what encode takes, or a little more.
func (p *payload) encodedSize() int {
	n := 32
	for i := range p.segments {
		c := p.segments[i].campaign
		n += 96 + len(c.ID) + len(c.RestaurantID) + len(c.Content) + len(c.Owner) + len(c.OwnerContact) + len(p.segments[i].clients.Bytes())
	}
	for i := range p.dead {
		n += p.dead[i].weight()
	}
	return n
}

func (s *segment) encode(dst []byte) []byte {
	c := s.campaign
	for _, n := range []int64{s.trigger, c.Start, c.End, c.Created} {
		dst = binary.AppendVarint(dst, n)
	}
	for _, f := range []string{c.ID, c.RestaurantID, c.Content, c.Owner, c.OwnerContact} {
		dst = appendBytes(dst, f)
	}
	dst = binary.AppendUvarint(dst, uint64(s.clients.Len()))
	return appendBytes(dst, s.clients.Bytes())
}

func (d *deadLetter) encode(dst []byte) []byte {
	for _, n := range []int64{int64(d.partition), d.offset, d.timestamp} {
		dst = binary.AppendVarint(dst, n)
	}
	dst = appendBytes(dst, d.reason)
	dst = appendBytes(dst, d.topic)
	dst = appendNullable(dst, d.key)
	dst = appendNullable(dst, d.value)
	dst = binary.AppendUvarint(dst, uint64(len(d.headers)))
	for _, h := range d.headers {
		dst = appendBytes(dst, h.key)
		dst = appendNullable(dst, h.value)
	}
	return dst
}

func appendBytes[T string | []byte](dst []byte, b T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

func appendNullable(dst, b []byte) []byte {
	if b == nil {
		return append(dst, 0)
	}
	return appendBytes(append(dst, 1), b)
}

// decodePayload reads a stored payload. A wrong checksum or a short body is an
// error that wraps ErrOutboxCorrupt: such a row is never shipped.
func decodePayload(seq int64, b []byte) (*payload, error) {
	if len(b) < len(payloadMagic)+1+4 || string(b[:len(payloadMagic)]) != payloadMagic {
		return nil, fmt.Errorf("decode outbox row %d: %w: no payload", seq, ErrOutboxCorrupt)
	}
	if v := b[len(payloadMagic)]; v != payloadVersion {
		return nil, fmt.Errorf("decode outbox row %d: payload version %d was written by another version of dinnerbell; this one reads %d", seq, v, payloadVersion)
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, fmt.Errorf("decode outbox row %d: %w: checksum does not match", seq, ErrOutboxCorrupt)
	}
	r := reader{b: body[len(payloadMagic)+1:]}
	p := &payload{seq: seq}
	for range r.count() {
		p.segments = append(p.segments, r.segment())
	}
	for range r.count() {
		p.dead = append(p.dead, r.deadLetter())
	}
	if r.err == nil && len(r.b) > 0 {
		r.err = fmt.Errorf("%d bytes too many", len(r.b))
	}
	if r.err != nil {
		return nil, fmt.Errorf("decode outbox row %d: %w: %w", seq, ErrOutboxCorrupt, r.err)
	}
	return p, nil
}

// reader takes values off the front of b; the first error stays and makes all
// later reads return zero values.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail() { r.b, r.err = nil, fmt.Errorf("short payload") }

func (r *reader) count() int {
	n, w := binary.Uvarint(r.b)
	if r.err != nil || w <= 0 || n > uint64(len(r.b)) {
		if r.err == nil {
			r.fail()
		}
		return 0
	}
	r.b = r.b[w:]
	return int(n)
}

func (r *reader) varint() int64 {
	n, w := binary.Varint(r.b)
	if r.err != nil || w <= 0 {
		if r.err == nil {
			r.fail()
		}
		return 0
	}
	r.b = r.b[w:]
	return n
}

func (r *reader) bytes() []byte {
	n := r.count()
	if r.err != nil || n > len(r.b) {
		if r.err == nil {
			r.fail()
		}
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) nullable() []byte {
	if r.err != nil || len(r.b) == 0 {
		if r.err == nil {
			r.fail()
		}
		return nil
	}
	present := r.b[0] != 0
	r.b = r.b[1:]
	if !present {
		return nil
	}
	return append([]byte{}, r.bytes()...)
}

func (r *reader) segment() segment {
	c := &campaign.Campaign{}
	s := segment{campaign: c, clients: &id.List{}}
	for _, to := range []*int64{&s.trigger, &c.Start, &c.End, &c.Created} {
		*to = r.varint()
	}
	for _, to := range []*string{&c.ID, &c.RestaurantID, &c.Content, &c.Owner, &c.OwnerContact} {
		*to = string(r.bytes())
	}
	n, packed := r.count(), r.bytes()
	for range n {
		id, rest, err := id.Read(packed)
		if err != nil {
			r.fail()
			return s
		}
		s.clients.Append(id)
		packed = rest
	}
	return s
}

func (r *reader) deadLetter() deadLetter {
	var d deadLetter
	d.partition, d.offset, d.timestamp = int32(r.varint()), r.varint(), r.varint()
	d.reason, d.topic = string(r.bytes()), string(r.bytes())
	d.key, d.value = r.nullable(), r.nullable()
	for range r.count() {
		d.headers = append(d.headers, header{key: string(r.bytes()), value: r.nullable()})
	}
	return d
}
