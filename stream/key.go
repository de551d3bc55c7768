package stream

import (
	"crypto/sha256"
	"encoding/binary"
)

// key names a campaign: the newest message of one key wins.
type key struct{ campaign, restaurant string }

// key returns what names the campaign.
func (c *Campaign) key() key { return key{campaign: c.ID, restaurant: c.RestaurantID} }

// compareKeys orders keys as the unique index does: by campaign, then by restaurant.
func compareKeys(a, b key) int {
	switch {
	case a.campaign < b.campaign:
		return -1
	case a.campaign > b.campaign:
		return 1
	case a.restaurant < b.restaurant:
		return -1
	case a.restaurant > b.restaurant:
		return 1
	}
	return 0
}

// digest stands for a Key: eight bytes of the campaign's SHA-256, so that digests
// of one campaign's restaurants lie in one range of hashes, then sixteen bytes of
// the SHA-256 of both ids.
type digest [24]byte

// digest hashes the key.
func (k key) digest() (d digest) {
	id := sha256.Sum256([]byte(k.campaign))
	copy(d[:8], id[:])
	both := sha256.Sum256(append(append(id[:], 0), k.restaurant...))
	copy(d[8:], both[:])
	return d
}

// campaign returns the part that stands for the campaign alone.
func (d digest) campaign() uint64 { return binary.BigEndian.Uint64(d[:8]) }

// fingerprint is the SHA-256 of a message's content: all eight fields.
type fingerprint [sha256.Size]byte

// fingerprint hashes all eight fields.
func (c *Campaign) fingerprint() fingerprint {
	h := sha256.New()
	var n [8]byte
	for _, f := range []string{c.RestaurantID, c.ID, c.Content, c.Owner, c.OwnerContact} {
		binary.BigEndian.PutUint64(n[:], uint64(len(f)))
		h.Write(n[:])
		h.Write([]byte(f))
	}
	for _, t := range []int64{c.Start, c.End, c.Created} {
		binary.BigEndian.PutUint64(n[:], uint64(t))
		h.Write(n[:])
	}
	return fingerprint(h.Sum(nil))
}
