package stream

import (
	"encoding/binary"
	"errors"
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

// ErrCorrupt marks an outbox row whose bytes are not what was written.
var ErrCorrupt = errors.New("outbox payload is damaged")

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

// add appends one client, to the last segment if it is of the same decision.
func (p *payload) add(c campaign.Campaign, trigger int64, client string) error {
	packed, err := id.Pack(client)
	if err != nil {
		return fmt.Errorf("client id %q: %w", client, err)
	}
	if n := len(p.segments); n == 0 || *p.segments[n-1].campaign != c || p.segments[n-1].trigger != trigger {
		p.segments = append(p.segments, segment{campaign: &c, trigger: trigger, clients: &id.List{}})
	}
	p.segments[len(p.segments)-1].clients.Append(packed)
	return nil
}

// refusedMessages counts the dead letters that stand for a message.
func (p *payload) refusedMessages() (n int64) {
	for i := range p.dead {
		if p.dead[i].clients == 0 {
			n++
		}
	}
	return n
}

// size is the bytes that the payload's records take, close enough to allocate by.
func (p *payload) size() int {
	n := 0
	for i := range p.segments {
		seg := &p.segments[i]
		n += seg.clients.Len()*seg.rendered().recordSize(0) + 3*len(seg.clients.Bytes())*2
	}
	for i := range p.dead {
		n += p.dead[i].weight()
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
// error that wraps ErrCorrupt: such a row is never shipped.
func decodePayload(seq int64, b []byte) (*payload, error) {
	if len(b) < len(payloadMagic)+1+4 || string(b[:len(payloadMagic)]) != payloadMagic {
		return nil, fmt.Errorf("decode outbox row %d: %w: no payload", seq, ErrCorrupt)
	}
	if v := b[len(payloadMagic)]; v != payloadVersion {
		return nil, fmt.Errorf("decode outbox row %d: payload version %d was written by another version of dinnerbell; this one reads %d", seq, v, payloadVersion)
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, fmt.Errorf("decode outbox row %d: %w: checksum does not match", seq, ErrCorrupt)
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
		return nil, fmt.Errorf("decode outbox row %d: %w: %w", seq, ErrCorrupt, r.err)
	}
	return p, nil
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
