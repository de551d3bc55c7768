package deployment

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"dinnerbell/internal/testenv/workload"
	"dinnerbell/scripts/bench/report"
)

// The kinds of restaurants.
const (
	KindHuge    = "huge"    // half of all subscriptions, if the other groups leave room; for memory
	KindLarge   = "large"   // one for each lane
	KindHundred = "hundred" // audiences of a hundred
	KindTen     = "ten"
	KindRest    = "rest" // fills the population up
)

const (
	// MaxLanes is the number of partitions of each topic.
	MaxLanes      = 2
	restAudience  = 50
	hundredsCount = 1000
	tensCount     = 1000
)

// Population is the content of the source table: groups of restaurants with the
// same audience size.
type Population struct{ workload.Population }

// NewPopulation returns a population of about rows subscriptions, more if the
// fixed groups need more.
func NewPopulation(audience, rows int) Population {
	var groups []workload.Group
	sum, largest := 0, 0
	add := func(kind string, audience, restaurants int) {
		groups = append(groups, workload.Group{Kind: kind, Audience: audience, Restaurants: restaurants})
		sum += audience * restaurants
		largest = max(largest, audience)
	}
	add(KindLarge, audience, MaxLanes)
	add(KindHundred, 100, hundredsCount)
	add(KindTen, 10, tensCount)
	if huge := rows / 2; rows-sum >= huge && huge > audience {
		add(KindHuge, huge, 1)
	}
	if left := rows - sum; left >= restAudience {
		add(KindRest, restAudience, left/restAudience)
	}
	return Population{workload.NewPopulation(2*largest, groups...)}
}

// subscriptionCopy is a binary COPY of all subscriptions (id, client_id,
// restaurant_id) in a scattered order. It implements io.Reader.
type subscriptionCopy struct {
	people *Population
	next   int
	buf    bytes.Buffer
}

const (
	// CopySignature begins a binary COPY.
	CopySignature = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	// CopyTrailer ends a binary COPY.
	CopyTrailer = "\xff\xff"
	// shuffle is a prime larger than any population, so n·shuffle mod rows
	// visits each row once.
	shuffle = 2_147_483_647
)

func (s *subscriptionCopy) Read(p []byte) (int, error) {
	if s.next == 0 && s.buf.Len() == 0 {
		s.buf.WriteString(CopySignature)
	}
	for s.buf.Len() < len(p) && s.next < s.people.Rows() {
		s.appendRow()
		if s.next == s.people.Rows() {
			s.buf.WriteString(CopyTrailer)
		}
	}
	return s.buf.Read(p) // io.EOF once it is empty
}

func (s *subscriptionCopy) appendRow() {
	client, restaurant := s.people.Row(int(uint64(s.next) * shuffle % uint64(s.people.Rows())))
	s.next++
	b := s.buf.AvailableBuffer()
	b = append(b, 0, 3, 0, 0, 0, 4)
	b = binary.BigEndian.AppendUint32(b, uint32(s.next))
	b = workload.AppendClientID(append(b, 0, 0, 0, 36), client)
	b = workload.AppendRestaurantID(append(b, 0, 0, 0, 36), restaurant)
	s.buf.Write(b)
}

// String lists the groups.
func (p *Population) String() string {
	parts := []string{report.Thousands(int64(p.Rows())) + " subscriptions:"}
	for _, g := range p.Groups() {
		parts = append(parts, fmt.Sprintf("%s×%s (%s)", report.Thousands(int64(g.Restaurants)), report.Thousands(int64(g.Audience)), g.Kind))
	}
	return strings.Join(parts, " ")
}
