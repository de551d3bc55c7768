package campaign

import (
	"crypto/sha256"
	"encoding/binary"
)

// Key identifies a campaign: of the messages with one key, the newest one wins.
type Key struct{ Campaign, Restaurant string }

// Key returns the campaign's key.
func (c *Campaign) Key() Key { return Key{Campaign: c.ID, Restaurant: c.RestaurantID} }

// CompareKeys orders keys as the unique index does: by campaign, then by restaurant.
func CompareKeys(a, b Key) int {
	switch {
	case a.Campaign < b.Campaign:
		return -1
	case a.Campaign > b.Campaign:
		return 1
	case a.Restaurant < b.Restaurant:
		return -1
	case a.Restaurant > b.Restaurant:
		return 1
	}
	return 0
}

// Digest stands for a Key: eight bytes of the campaign's SHA-256, so that digests
// of one campaign's restaurants lie in one range of hashes, then sixteen bytes of
// the SHA-256 of both ids.
type Digest [24]byte

// Digest hashes the key.
func (k Key) Digest() (d Digest) {
	id := sha256.Sum256([]byte(k.Campaign))
	copy(d[:8], id[:])
	both := sha256.Sum256(append(append(id[:], 0), k.Restaurant...))
	copy(d[8:], both[:])
	return d
}

// Campaign returns the hash of the campaign id alone.
func (d Digest) Campaign() uint64 { return binary.BigEndian.Uint64(d[:8]) }

// Fingerprint is the SHA-256 of a message's content: all eight fields.
type Fingerprint [sha256.Size]byte

// Fingerprint hashes all eight fields.
func (c *Campaign) Fingerprint() Fingerprint {
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
	return Fingerprint(h.Sum(nil))
}
