// Package campaign holds the rules of campaign messages: validity (Parse), identity
// (Key, Fingerprint), and which message of a campaign counts (Judge). It is pure: no
// package of this module, no Kafka, no Postgres, no Pebble.
package campaign

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
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

// Parse decodes and validates one message; a nil value is a tombstone. The error names
// the producer's mistake in words fit for a dead-letter header.
func Parse(value []byte) (*Campaign, error) {
	value = bytes.TrimPrefix(value, byteOrderMark)
	if c, ok := scanPlain(value); ok {
		return c, c.validate()
	}
	c, err := decodeJSON(value)
	if err != nil {
		return nil, err
	}
	return c, c.validate()
}

// decodeJSON decodes every JSON form of a message. It does not validate the campaign.
func decodeJSON(value []byte) (*Campaign, error) {
	fields, err := parseObject(value)
	if err != nil {
		return nil, err
	}
	var c Campaign
	for _, f := range []struct {
		name string
		to   any
	}{
		{"restaurant_id", &c.RestaurantID},
		{"adv_campaign_id", &c.ID},
		{"adv_campaign_content", &c.Content},
		{"adv_campaign_owner", &c.Owner},
		{"adv_campaign_owner_contact", &c.OwnerContact},
		{"adv_campaign_datetime_start", &c.Start},
		{"adv_campaign_datetime_end", &c.End},
		{"datetime_created", &c.Created},
	} {
		if err := parseField(fields, f.name, f.to); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

// parseObject reads one JSON object. Field names stay exact: encoding/json
// would take "Restaurant_ID" for restaurant_id when decoding into a struct.
func parseObject(value []byte) (map[string]json.RawMessage, error) {
	if err := diagnoseBytes(value); err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(value, &fields); err != nil {
		if typeErr, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return nil, diagnoseType(value, typeErr.Value)
		}
		return nil, diagnoseText(value, err)
	}
	if fields == nil {
		return nil, errors.New("the value is a JSON null, not an object")
	}
	return fields, nil
}

// parseField decodes the named field into to, a *string or *int64.
func parseField(fields map[string]json.RawMessage, name string, to any) error {
	raw, ok := fields[name]
	switch {
	case !ok:
		return diagnoseMissing(fields, name)
	case bytes.Equal(raw, []byte("null")):
		return fmt.Errorf("%s is null", name)
	}
	if err := json.Unmarshal(raw, to); err != nil {
		number, isTime := to.(*int64)
		if isTime && (raw[0] == '-' || '0' <= raw[0] && raw[0] <= '9') {
			if n, whole := parseWholeNumber(raw); whole {
				*number = n
				return nil
			}
		}
		return diagnoseField(name, raw, isTime)
	}
	if s, isString := to.(*string); isString {
		if strings.ContainsRune(*s, 0) {
			return fmt.Errorf("%s contains U+0000, which Postgres cannot store", name)
		}
		if hasLoneSurrogate(raw) {
			return fmt.Errorf("%s contains half of a surrogate pair, which is no character", name)
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
func (c *Campaign) validate() error {
	for _, f := range []struct{ name, id string }{{"restaurant_id", c.RestaurantID}, {"adv_campaign_id", c.ID}} {
		if f.id == "" {
			return fmt.Errorf("%s is empty", f.name)
		}
		if len(f.id) > MaxIDBytes {
			return fmt.Errorf("%s is %d bytes long; at most %d can be indexed", f.name, len(f.id), MaxIDBytes)
		}
	}
	for _, f := range []struct {
		name string
		at   int64
	}{
		{"adv_campaign_datetime_start", c.Start},
		{"adv_campaign_datetime_end", c.End},
		{"datetime_created", c.Created},
	} {
		if f.at < 0 || f.at > MaxUnix {
			return fmt.Errorf("%s %d is not a Unix second of the years 1970 to 9999%s", f.name, f.at, unitHint(f.at))
		}
	}
	if c.End <= c.Start {
		return fmt.Errorf("adv_campaign_datetime_end %d is not after adv_campaign_datetime_start %d", c.End, c.Start)
	}
	return nil
}
