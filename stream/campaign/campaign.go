// Package campaign holds the rules of campaign messages: validity (Parse), identity
// (Key, Fingerprint), and which message of a campaign counts (Judge). It is pure: no
// package of this module, no Kafka, no Postgres, no Pebble.
package campaign

import (
	"bytes"
	"encoding/json"
	"strings"
)

// MaxIDBytes bounds the ids of a campaign. Postgres cannot index a key of more
// than about 2,700 bytes (a third of a page), and both (campaign, client) and
// (campaign, restaurant) are keys of an index.
const MaxIDBytes = 1024

// MaxUnix is 9999-12-31T23:59:59Z: the last second with a four-digit year.
const MaxUnix = 253402300799

// Campaign is one valid message of the campaigns topic: the eight fields of
// the contract, times in Unix seconds, valid from Start inclusive to End
// exclusive.
type Campaign struct {
	RestaurantID string
	ID           string
	Content      string
	Owner        string
	OwnerContact string
	Start        int64
	End          int64
	Created      int64
}

// Size estimates the campaign's bytes in memory.
func (c *Campaign) Size() int {
	return 256 + len(c.RestaurantID) + len(c.ID) + len(c.Content) + len(c.Owner) + len(c.OwnerContact)
}

// byteOrderMark stands before the UTF-8 text of some editors and of .NET. The mark is
// no part of the JSON (RFC 8259, section 8.1), and readers may ignore it.
var byteOrderMark = []byte("\ufeff")

// Parse decodes and validates one message; a nil value is a tombstone.
func Parse(value []byte) (*Campaign, *Refusal) {
	value = bytes.TrimPrefix(value, byteOrderMark)
	if c, ok := scanPlain(value); ok {
		return c, c.validate()
	}
	c, refusal := decodeJSON(value)
	if refusal != nil {
		return nil, refusal
	}
	return c, c.validate()
}

// decodeJSON decodes every JSON form of a message. It does not validate the campaign.
func decodeJSON(value []byte) (*Campaign, *Refusal) {
	o, refusal := parseObject(value)
	if refusal != nil {
		return nil, refusal
	}
	c := &Campaign{}
	for i, to := range [len(fieldNames)]any{
		&c.RestaurantID, &c.ID, &c.Content, &c.Owner, &c.OwnerContact, &c.Start, &c.End, &c.Created,
	} {
		if refusal := o.decodeField(i, to); refusal != nil {
			return nil, refusal
		}
	}
	return c, nil
}

// decodeField decodes the field of that index into to, a *string or *int64.
func (o *object) decodeField(i int, to any) *Refusal {
	name, raw := fieldNames[i], o.values[i]
	switch {
	case raw == nil:
		return o.diagnoseMissing(name)
	case string(raw) == "null":
		return Refuse(ClassMissingField, "%s is null", name)
	}
	switch to := to.(type) {
	case *int64:
		n, whole := parseWholeNumber(raw)
		if !whole {
			return diagnoseTime(name, raw)
		}
		*to = n
	case *string:
		if raw[0] != '"' || json.Unmarshal(raw, to) != nil {
			return diagnoseString(name, raw)
		}
		if strings.ContainsRune(*to, 0) {
			return Refuse(ClassBadText, "%s contains U+0000, which Postgres cannot store", name)
		}
		if hasLoneSurrogate(raw) {
			return Refuse(ClassBadText, "%s contains half of a surrogate pair, which is no character", name)
		}
	}
	return nil
}

// hasLoneSurrogate reports whether raw, a valid JSON string, holds a \uD800–\uDFFF
// escape without its other half. encoding/json silently replaces such a half by U+FFFD.
func hasLoneSurrogate(raw []byte) bool {
	for i := 0; i+1 < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		if raw[i+1] != 'u' {
			i++
			continue
		}
		switch surrogateHalf(raw[i:]) {
		case 0:
			i += 5
		case 'h':
			if i+6 >= len(raw) || surrogateHalf(raw[i+6:]) != 'l' {
				return true
			}
			i += 11
		default:
			return true
		}
	}
	return false
}

// surrogateHalf classifies the \uXXXX escape at the front of b: 'h' for a high
// half, 'l' for a low one, 0 for anything else.
func surrogateHalf(b []byte) byte {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' || b[2]|0x20 != 'd' {
		return 0
	}
	switch c := b[3] | 0x20; {
	case c == '8', c == '9', c == 'a', c == 'b', b[3] == '8', b[3] == '9':
		return 'h'
	case c >= 'c' && c <= 'f':
		return 'l'
	}
	return 0
}

// validate checks the rules of the contract that span fields or need more than a type.
func (c *Campaign) validate() *Refusal {
	for i, id := range [...]string{c.RestaurantID, c.ID} {
		if id == "" {
			return Refuse(ClassBadID, "%s is empty", fieldNames[i])
		}
		if len(id) > MaxIDBytes {
			return Refuse(ClassBadID, "%s is %d bytes long; at most %d can be indexed", fieldNames[i], len(id), MaxIDBytes)
		}
	}
	for i, at := range [...]int64{c.Start, c.End, c.Created} {
		if at < 0 || at > MaxUnix {
			return diagnoseSecond(fieldNames[5+i], at)
		}
	}
	if c.End <= c.Start {
		return Refuse(ClassBadTime, "adv_campaign_datetime_end %d is not after adv_campaign_datetime_start %d", c.End, c.Start)
	}
	return nil
}
