package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sort"
	"strings"
)

// A town is the made-up population: groups of restaurants with one audience
// size each. Everything about it follows from indexes, nothing is stored, so
// ten million subscriptions cost no memory.
type town struct {
	groups  []group
	rows    int // subscriptions in all
	clients int // how many there are to choose from
}

type group struct {
	kind        string
	audience    int // subscribers of each restaurant
	restaurants int
	firstRow    int
	firstPlace  int // number of its first restaurant in the town
}

// Kinds of restaurants.
const (
	kindHuge    = "huge"    // half of the town, for memory; where there is room
	kindLarge   = "large"   // the large campaign; one for each lane
	kindHundred = "hundred" // small ones
	kindTen     = "ten"
	kindRest    = "rest" // fills up
)

const (
	maxLanes      = 2
	restAudience  = 50
	hundredsCount = 1000
	tensCount     = 1000
)

// newTown has at least rows subscriptions where the fixed groups fit into them.
func newTown(audience, rows int) town {
	t := town{}
	t.add(kindLarge, audience, maxLanes)
	t.add(kindHundred, 100, hundredsCount)
	t.add(kindTen, 10, tensCount)
	if huge := rows / 2; rows-t.rows >= huge && huge > audience {
		t.add(kindHuge, huge, 1)
	}
	if left := rows - t.rows; left >= restAudience {
		t.add(kindRest, restAudience, left/restAudience)
	}
	largest := 0
	for _, g := range t.groups {
		largest = max(largest, g.audience)
	}
	t.clients = 2 * largest
	return t
}

func (t *town) add(kind string, audience, restaurants int) {
	first := 0
	if n := len(t.groups); n > 0 {
		first = t.groups[n-1].firstPlace + t.groups[n-1].restaurants
	}
	t.groups = append(t.groups, group{kind: kind, audience: audience, restaurants: restaurants, firstRow: t.rows, firstPlace: first})
	t.rows += audience * restaurants
}

// group gives the group of a kind; ok is false where the town has none.
func (t *town) group(kind string) (g group, ok bool) {
	for _, g := range t.groups {
		if g.kind == kind {
			return g, true
		}
	}
	return group{}, false
}

// stride walks the clients in an order that is no order. It is prime, and no
// divisor of any number of clients that a town has.
const stride = 1_000_003

// subscriber is the i-th client of the town's restaurant number place.
func (t *town) subscriber(place, i int) int {
	return int((uint64(place)*7919 + uint64(i)*stride) % uint64(t.clients))
}

// row is the n-th subscription.
func (t *town) row(n int) (client, restaurant int) {
	k := sort.Search(len(t.groups), func(i int) bool { return t.groups[i].firstRow > n }) - 1
	g := &t.groups[k]
	at := n - g.firstRow
	place := g.firstPlace + at/g.audience
	return t.subscriber(place, at%g.audience), place
}

// audience lists a restaurant's clients as sorted text, as an index has them.
func (t *town) audience(g group, restaurant int) []string {
	out := make([]string, g.audience)
	for i := range out {
		out[i] = string(appendClient(nil, t.subscriber(g.firstPlace+restaurant, i)))
	}
	sort.Strings(out)
	return out
}

func appendClient(dst []byte, n int) []byte     { return appendUUID(dst, 1, uint64(n)) }
func appendRestaurant(dst []byte, n int) []byte { return appendUUID(dst, 2, uint64(n)) }

func (g *group) restaurant(n int) string { return string(appendRestaurant(nil, g.firstPlace+n)) }

// appendUUID appends a version 4 UUID that follows from space and n and looks
// random (splitmix64).
func appendUUID(dst []byte, space, n uint64) []byte {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], mix(n<<8|space))
	binary.BigEndian.PutUint64(b[8:], mix(mix(n<<8|space)^0xd1b54a32d192ed03))
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80 // RFC 9562 variant
	dst = hex.AppendEncode(dst, b[:4])
	for _, part := range [][]byte{b[4:6], b[6:8], b[8:10], b[10:]} {
		dst = hex.AppendEncode(append(dst, '-'), part)
	}
	return dst
}

// mix is splitmix64's output function: a bijection without visible pattern.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// copyStream is a binary COPY of all subscriptions (id, client_id,
// restaurant_id), in an order that helps nobody. It implements io.Reader.
type copyStream struct {
	town *town
	next int
	buf  bytes.Buffer
}

const (
	copySignature = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	copyTrailer   = "\xff\xff"
	// shuffle is a prime larger than any town: n·shuffle mod rows visits each
	// row once.
	shuffle = 2_147_483_647
)

func (s *copyStream) Read(p []byte) (int, error) {
	if s.next == 0 && s.buf.Len() == 0 {
		s.buf.WriteString(copySignature)
	}
	for s.buf.Len() < len(p) && s.next < s.town.rows {
		s.appendRow()
		if s.next == s.town.rows {
			s.buf.WriteString(copyTrailer)
		}
	}
	return s.buf.Read(p) // io.EOF once it is empty
}

func (s *copyStream) appendRow() {
	client, restaurant := s.town.row(int(uint64(s.next) * shuffle % uint64(s.town.rows)))
	s.next++
	b := s.buf.AvailableBuffer()
	b = append(b, 0, 3, 0, 0, 0, 4)
	b = binary.BigEndian.AppendUint32(b, uint32(s.next))
	b = appendClient(append(b, 0, 0, 0, 36), client)
	b = appendRestaurant(append(b, 0, 0, 0, 36), restaurant)
	s.buf.Write(b)
}

// String says how the town is made.
func (t *town) String() string {
	parts := []string{thousands(int64(t.rows)) + " subscriptions:"}
	for _, g := range t.groups {
		parts = append(parts, fmt.Sprintf("%s×%s (%s)", thousands(int64(g.restaurants)), thousands(int64(g.audience)), g.kind))
	}
	return strings.Join(parts, " ")
}
