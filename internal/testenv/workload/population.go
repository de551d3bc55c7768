package workload

import (
	"encoding/binary"
	"encoding/hex"
	"sort"
)

// Population is a made-up set of restaurants with subscribers. Everything about
// it follows from indexes and nothing is stored, so ten million subscriptions
// cost no memory. Restaurants are numbered from 0 in the order of the groups.
type Population struct {
	groups  []Group
	rows    int // subscriptions in all
	clients int // how many clients restaurants draw their audiences from
}

// Group is a number of restaurants with the same audience.
type Group struct {
	Kind        string // name of the group; "" if nobody asks for it
	Audience    int    // subscribers of each restaurant
	Restaurants int

	firstRow        int
	firstRestaurant int
}

// FirstRestaurant is the number of the group's first restaurant in the
// population.
func (g *Group) FirstRestaurant() int { return g.firstRestaurant }

// NewPopulation returns the population of some groups. clients is at least the
// largest audience and no multiple of 1,000,003: a restaurant then has each client
// at most once.
func NewPopulation(clients int, groups ...Group) Population {
	p := Population{clients: clients}
	restaurants := 0
	for _, g := range groups {
		g.firstRow, g.firstRestaurant = p.rows, restaurants
		p.rows += g.Audience * g.Restaurants
		restaurants += g.Restaurants
		p.groups = append(p.groups, g)
	}
	return p
}

// Rows is the number of subscriptions.
func (p *Population) Rows() int { return p.rows }

// Groups lists the groups; the caller does not change them.
func (p *Population) Groups() []Group { return p.groups }

// Group returns the group of a kind; ok is false where the population has none.
func (p *Population) Group(kind string) (g Group, ok bool) {
	for _, g := range p.groups {
		if g.Kind == kind {
			return g, true
		}
	}
	return Group{}, false
}

// stride is the step from one client of a restaurant to its next, so that
// audiences are in no order. It is prime: a number of clients that is no multiple
// of it has each client once before the first one comes again.
const stride = 1_000_003

// Subscriber returns the number of a restaurant's i-th client.
func (p *Population) Subscriber(restaurant, i int) int {
	return int((uint64(restaurant)*7919 + uint64(i)*stride) % uint64(p.clients))
}

// Row returns the n-th subscription.
func (p *Population) Row(n int) (client, restaurant int) {
	k := sort.Search(len(p.groups), func(i int) bool { return p.groups[i].firstRow > n }) - 1
	g := &p.groups[k]
	at := n - g.firstRow
	restaurant = g.firstRestaurant + at/g.Audience
	return p.Subscriber(restaurant, at%g.Audience), restaurant
}

// Audience lists the client ids of a group's i-th restaurant, sorted as an index
// of text sorts them.
func (p *Population) Audience(g Group, i int) []string {
	ids := make([]string, g.Audience)
	for n := range ids {
		ids[n] = ClientID(p.Subscriber(g.firstRestaurant+i, n))
	}
	sort.Strings(ids)
	return ids
}

// The spaces of ids: the same number gives different UUIDs in each.
const (
	clientSpace     = 1
	restaurantSpace = 2
	campaignSpace   = 3
)

// ClientID returns the id of client n, a UUID.
func ClientID(n int) string { return string(AppendClientID(nil, n)) }

// RestaurantID returns the id of restaurant n, a UUID.
func RestaurantID(n int) string { return string(AppendRestaurantID(nil, n)) }

// CampaignID returns the id of campaign n, a UUID.
func CampaignID(n uint64) string { return string(appendUUID(nil, campaignSpace, n)) }

// AppendClientID appends the id of client n.
func AppendClientID(dst []byte, n int) []byte { return appendUUID(dst, clientSpace, uint64(n)) }

// AppendRestaurantID appends the id of restaurant n.
func AppendRestaurantID(dst []byte, n int) []byte { return appendUUID(dst, restaurantSpace, uint64(n)) }

// appendUUID appends a version 4 UUID that follows from space and n and looks
// random (splitmix64).
func appendUUID(dst []byte, space, n uint64) []byte {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], Mix(n<<8|space))
	binary.BigEndian.PutUint64(b[8:], Mix(Mix(n<<8|space)^0xd1b54a32d192ed03))
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80 // RFC 9562 variant
	dst = hex.AppendEncode(dst, b[:4])
	for _, part := range [][]byte{b[4:6], b[6:8], b[8:10], b[10:]} {
		dst = hex.AppendEncode(append(dst, '-'), part)
	}
	return dst
}

// Mix is splitmix64's output function: a bijection without visible pattern.
func Mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
