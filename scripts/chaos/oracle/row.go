package oracle

import (
	"fmt"
	"strconv"
	"strings"

	"dinnerbell/scripts/chaos/history"
)

// FeedbackRow is one row of the feedback table.
type FeedbackRow struct {
	ID int64
	history.CampaignFields
	Client   string
	Trigger  int64
	Feedback *string
}

// recordKey builds the key of the row's record from the contract.
func (w *FeedbackRow) recordKey() string { return escapeKey(w.Campaign) + ":" + escapeKey(w.Client) }

func escapeKey(id string) string {
	return strings.ReplaceAll(strings.ReplaceAll(id, "%", "%25"), ":", "%3A")
}

func (w *FeedbackRow) recordValue() string {
	var b strings.Builder
	text := func(name, s string) { b.WriteString(`"` + name + `":` + jsonString(s) + `,`) }
	number := func(name string, n int64) { b.WriteString(`"` + name + `":` + strconv.FormatInt(n, 10)) }
	b.WriteByte('{')
	text("restaurant_id", w.Restaurant)
	text("adv_campaign_id", w.Campaign)
	text("adv_campaign_content", w.Content)
	text("adv_campaign_owner", w.Owner)
	text("adv_campaign_owner_contact", w.Contact)
	number("adv_campaign_datetime_start", w.Start)
	b.WriteByte(',')
	number("adv_campaign_datetime_end", w.End)
	b.WriteByte(',')
	text("client_id", w.Client)
	number("datetime_created", w.Created)
	b.WriteByte(',')
	number("trigger_datetime_created", w.Trigger)
	b.WriteByte('}')
	return b.String()
}

// jsonString escapes the characters that JSON requires and, as Go does, U+2028
// and U+2029.
func jsonString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteRune('\\')
			b.WriteRune(c)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\r':
			b.WriteString(`\r`)
		case c == '\t':
			b.WriteString(`\t`)
		case c == '\b':
			b.WriteString(`\b`)
		case c == '\f':
			b.WriteString(`\f`)
		case c < 0x20 || c == 0x2028 || c == 0x2029:
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// murmur2Hash is the hash of Kafka's default partitioner.
// https://github.com/apache/kafka/blob/trunk/clients/src/main/java/org/apache/kafka/common/utils/Utils.java
func murmur2Hash(data []byte) uint32 {
	const m, r = 0x5bd1e995, 24
	h := uint32(0x9747b28c) ^ uint32(len(data))
	for ; len(data) >= 4; data = data[4:] {
		k := uint32(data[0]) | uint32(data[1])<<8 | uint32(data[2])<<16 | uint32(data[3])<<24
		k *= m
		k ^= k >> r
		h = h*m ^ k*m
	}
	if len(data) > 0 {
		for i, c := range data {
			h ^= uint32(c) << (8 * i)
		}
		h *= m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}

// partitionOf returns the partition of a key among n.
func partitionOf(key string, n int) int32 {
	return int32(murmur2Hash([]byte(key))&0x7fffffff) % int32(n)
}
