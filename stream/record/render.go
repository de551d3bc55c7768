package record

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
)

// Template holds the constant parts of all that is written per client of one campaign
// at one decision: they are rendered once, and a client costs a copy.
//
//	Kafka key     keyHead + escaped client
//	Kafka value   jsonHead + "client" + jsonTail
//	COPY tuple    copyHead + int32 length + client
type Template struct {
	keyHead  []byte
	jsonHead []byte
	jsonTail []byte
	copyHead []byte // empty in a template of NewTemplate, which writes no rows

	uuidClients bool // COPY sends the client as 16 bytes
}

// NewTemplate renders the constant parts of a campaign's records. trigger is the Unix
// second of the decision; both sinks carry this same value.
func NewTemplate(c *campaign.Campaign, trigger int64) *Template {
	return (*ColumnKinds)(nil).NewTemplate(c, trigger)
}

// NewTemplate renders the constant parts of a campaign's records and, where k is not
// nil, of its rows in a table of these kinds.
func (k *ColumnKinds) NewTemplate(c *campaign.Campaign, trigger int64) *Template {
	// One buffer for all parts. Where escapes make it grow, the parts that were cut off
	// before stay in the old buffer.
	w := &Template{}
	n := len(c.RestaurantID) + len(c.ID) + len(c.Content) + len(c.Owner) + len(c.OwnerContact)
	if k != nil {
		n *= 2
	}
	b := make([]byte, 0, n+len(c.ID)+templateNames)
	cut := func() []byte {
		piece := slices.Clip(b)
		b = b[len(b):]
		return piece
	}

	b = append(appendKeyID(b, c.ID), ':')
	w.keyHead = cut()

	b = appendJSONString(append(b, `{"restaurant_id":`...), c.RestaurantID)
	b = append(b, `,"adv_campaign_id":`...)
	b = appendJSONString(b, c.ID)
	b = appendJSONString(append(b, `,"adv_campaign_content":`...), c.Content)
	b = appendJSONString(append(b, `,"adv_campaign_owner":`...), c.Owner)
	b = appendJSONString(append(b, `,"adv_campaign_owner_contact":`...), c.OwnerContact)
	b = strconv.AppendInt(append(b, `,"adv_campaign_datetime_start":`...), c.Start, 10)
	b = strconv.AppendInt(append(b, `,"adv_campaign_datetime_end":`...), c.End, 10)
	b = append(b, `,"client_id":`...)
	w.jsonHead = cut()

	b = strconv.AppendInt(append(b, `,"datetime_created":`...), c.Created, 10)
	b = strconv.AppendInt(append(b, `,"trigger_datetime_created":`...), trigger, 10)
	b = append(b, '}')
	w.jsonTail = cut()

	if k != nil {
		b = k.appendCopyHead(b, c, trigger)
		w.copyHead, w.uuidClients = cut(), k[ClientColumn] == KindUUID
	}
	return w
}

// templateNames bounds the bytes beside the texts: names, numbers, lengths.
const templateNames = 512

// AppendRecord appends the key and the value of one notification and returns the ends of
// both in dst.
func (w *Template) AppendRecord(dst []byte, client id.ID) (out []byte, keyEnd, valueEnd int) {
	dst = append(dst, w.keyHead...)
	mark := len(dst)
	dst = client.AppendText(dst)
	dst = escapeKeyFrom(dst, mark)
	keyEnd = len(dst)

	dst = append(dst, w.jsonHead...)
	dst = append(dst, '"')
	mark = len(dst)
	dst = client.AppendText(dst)
	if isPlainJSON(dst[mark:]) {
		dst = append(dst, '"')
	} else {
		text := string(dst[mark:])
		dst = appendJSONString(dst[:mark-1], text)
	}
	dst = append(dst, w.jsonTail...)
	return dst, keyEnd, len(dst)
}

// MaxRecordSize bounds the bytes of one record's key and value for a client id of n
// bytes: JSON escapes a byte to at most six bytes, a key to at most three.
func (w *Template) MaxRecordSize(n int) int {
	return len(w.keyHead) + len(w.jsonHead) + len(w.jsonTail) + 2 + 9*n
}

// CheckSize returns a refusal where a notification of the campaign does not fit into the
// limit bytes that a topic accepts per batch.
func CheckSize(c *campaign.Campaign, topic string, limit int) *campaign.Refusal {
	size := 6*c.Size() + Overhead // escapes make a text at most six times as long
	if size > limit {
		size = NewTemplate(c, 0).MaxRecordSize(0) + Overhead
	}
	if size > limit {
		return campaign.Refuse(campaign.ClassTooLarge, "a notification of it takes %d bytes, topic %s accepts %d", size, topic, limit)
	}
	return nil
}

// appendKeyID appends an id with % and : percent-encoded, so that "<campaign>:<client>"
// has one reading only.
func appendKeyID(dst []byte, id string) []byte {
	mark := len(dst)
	return escapeKeyFrom(append(dst, id...), mark)
}

// escapeKeyFrom percent-encodes % and : in dst[mark:].
func escapeKeyFrom(dst []byte, mark int) []byte {
	if bytes.IndexByte(dst[mark:], '%') < 0 && bytes.IndexByte(dst[mark:], ':') < 0 {
		return dst
	}
	id := string(dst[mark:])
	return append(dst[:mark], keyEscaper.Replace(id)...)
}

var keyEscaper = strings.NewReplacer("%", "%25", ":", "%3A")

// isPlainJSON reports whether s between quotes is a JSON string.
func isPlainJSON[T string | []byte](s T) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// appendJSONString appends s as a JSON string, without the HTML escapes that
// encoding/json puts in by default.
func appendJSONString(dst []byte, s string) []byte {
	if isPlainJSON(s) {
		return append(append(append(dst, '"'), s...), '"')
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil { // cannot happen: a string always encodes
		return append(dst, `""`...)
	}
	return append(dst, bytes.TrimSuffix(out.Bytes(), []byte("\n"))...)
}
