package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
)

// A payload is the content of one outbox row: the clients that one step notified and
// the messages that it refused, enough to render byte-identical records again.
//
//	magic "DB" | version u8 | body | crc32c(all before) u32 BE
//	body    = segment count, segments, dead letter count, dead letters
//	segment = trigger, start, end, created, campaign, restaurant, content, owner, contact,
//	          client count, length of the packed clients, packed clients (id.ID, back to back)
//	dead    = partition, offset, timestamp ms, reason, class (not in version 1), topic, nil flag, key, nil flag, value, headers
//
// Counts and lengths are uvarints, times and positions varints, strings carry
// their length before them.
const (
	payloadMagic   = "DB"
	payloadVersion = 2 // version 1 is read, too
)

// ErrCorrupt marks an outbox row whose bytes differ from the bytes that were written.
var ErrCorrupt = errors.New("outbox payload is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Segment is one campaign's share of a step.
type Segment struct {
	Campaign *campaign.Campaign
	Trigger  int64 // Unix second of the decision
	Clients  *id.List
	Template *Template // set when the step is sealed; a segment from the outbox renders it on demand
}

// Render returns the segment's template.
func (s *Segment) Render() *Template {
	if s.Template == nil {
		s.Template = NewTemplate(s.Campaign, s.Trigger)
	}
	return s.Template
}

// Payload is the decoded form of an outbox row.
type Payload struct {
	Seq      int64
	Segments []Segment
	Dead     []DeadLetter
}

// Notifications counts the payload's records, without its dead letters.
func (p *Payload) Notifications() int {
	n := 0
	for i := range p.Segments {
		n += p.Segments[i].Clients.Len()
	}
	return n
}

// Notifies reports whether the payload notifies a client of a campaign.
func (p *Payload) Notifies(campaign string, client id.ID) bool {
	for i := range p.Segments {
		s := &p.Segments[i]
		if s.Campaign.ID != campaign {
			continue
		}
		for n := range s.Clients.Len() {
			if s.Clients.At(n) == client {
				return true
			}
		}
	}
	return false
}

// Add appends one client, to the last segment if that is of the same decision.
func (p *Payload) Add(c campaign.Campaign, trigger int64, client string) error {
	packed, err := id.Pack(client)
	if err != nil {
		return fmt.Errorf("client id %q: %w", client, err)
	}
	if n := len(p.Segments); n == 0 || *p.Segments[n-1].Campaign != c || p.Segments[n-1].Trigger != trigger {
		p.Segments = append(p.Segments, Segment{Campaign: &c, Trigger: trigger, Clients: &id.List{}})
	}
	p.Segments[len(p.Segments)-1].Clients.Append(packed)
	return nil
}

// RefusedMessages counts the dead letters that refuse a message.
func (p *Payload) RefusedMessages() (n int64) {
	for i := range p.Dead {
		if p.Dead[i].Clients == 0 {
			n++
		}
	}
	return n
}

// RecordBytes estimates the bytes of the payload's records, closely enough to allocate
// by.
func (p *Payload) RecordBytes() int {
	n := 0
	for i := range p.Segments {
		seg := &p.Segments[i]
		n += seg.Clients.Len()*seg.Render().MaxRecordSize(0) + 3*len(seg.Clients.Bytes())*2
	}
	for i := range p.Dead {
		n += p.Dead[i].Size()
	}
	return n
}

// Encode returns the stored form of p, without its seq, which is the row's key.
func (p *Payload) Encode() []byte {
	dst := append(make([]byte, 0, p.encodedSize()), payloadMagic...)
	dst = append(dst, payloadVersion)
	dst = binary.AppendUvarint(dst, uint64(len(p.Segments)))
	for i := range p.Segments {
		dst = p.Segments[i].appendTo(dst)
	}
	dst = binary.AppendUvarint(dst, uint64(len(p.Dead)))
	for i := range p.Dead {
		dst = p.Dead[i].appendTo(dst)
	}
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst, castagnoli))
}

// encodedSize bounds the bytes that Encode writes.
func (p *Payload) encodedSize() int {
	n := 32
	for i := range p.Segments {
		c := p.Segments[i].Campaign
		n += 96 + len(c.ID) + len(c.RestaurantID) + len(c.Content) + len(c.Owner) + len(c.OwnerContact) + len(p.Segments[i].Clients.Bytes())
	}
	for i := range p.Dead {
		n += p.Dead[i].Size()
	}
	return n
}

func (s *Segment) appendTo(dst []byte) []byte {
	c := s.Campaign
	for _, n := range []int64{s.Trigger, c.Start, c.End, c.Created} {
		dst = binary.AppendVarint(dst, n)
	}
	for _, f := range []string{c.ID, c.RestaurantID, c.Content, c.Owner, c.OwnerContact} {
		dst = appendCounted(dst, f)
	}
	dst = binary.AppendUvarint(dst, uint64(s.Clients.Len()))
	return appendCounted(dst, s.Clients.Bytes())
}

func appendCounted[T string | []byte](dst []byte, b T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

func appendNullable(dst, b []byte) []byte {
	if b == nil {
		return append(dst, 0)
	}
	return appendCounted(append(dst, 1), b)
}

// DecodePayload reads a stored payload. For a wrong checksum or a short body it returns
// an error that wraps ErrCorrupt: such a row is never shipped.
func DecodePayload(seq int64, b []byte) (*Payload, error) {
	if len(b) < len(payloadMagic)+1+4 || string(b[:len(payloadMagic)]) != payloadMagic {
		return nil, fmt.Errorf("decode outbox row %d: %w: no payload", seq, ErrCorrupt)
	}
	version := b[len(payloadMagic)]
	if version < 1 || version > payloadVersion {
		return nil, fmt.Errorf("decode outbox row %d: payload version %d was written by another version of dinnerbell; this one reads up to %d", seq, version, payloadVersion)
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, fmt.Errorf("decode outbox row %d: %w: checksum does not match", seq, ErrCorrupt)
	}
	r := payloadReader{b: body[len(payloadMagic)+1:], version: version}
	p := &Payload{Seq: seq}
	for range r.readCount() {
		p.Segments = append(p.Segments, r.readSegment())
	}
	for range r.readCount() {
		p.Dead = append(p.Dead, r.readDeadLetter())
	}
	if r.err == nil && len(r.b) > 0 {
		r.err = fmt.Errorf("%d bytes too many", len(r.b))
	}
	if r.err != nil {
		return nil, fmt.Errorf("decode outbox row %d: %w: %w", seq, ErrCorrupt, r.err)
	}
	return p, nil
}

func (r *payloadReader) readSegment() Segment {
	c := &campaign.Campaign{}
	s := Segment{Campaign: c, Clients: &id.List{}}
	for _, to := range []*int64{&s.Trigger, &c.Start, &c.End, &c.Created} {
		*to = r.readVarint()
	}
	for _, to := range []*string{&c.ID, &c.RestaurantID, &c.Content, &c.Owner, &c.OwnerContact} {
		*to = string(r.readBytes())
	}
	n, packed := r.readCount(), r.readBytes()
	for range n {
		id, rest, err := id.Read(packed)
		if err != nil {
			r.setShort()
			return s
		}
		s.Clients.Append(id)
		packed = rest
	}
	return s
}
