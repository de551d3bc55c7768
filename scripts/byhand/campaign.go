package main

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"dinnerbell/internal/testenv/workload"
)

// campaign is one input message with the constant parts of its notifications.
type campaign struct {
	workload.Campaign

	// The constant beginnings and endings of the notifications' keys and
	// values.
	keyHead, valueHead, valueTail string
	trigger                       int64 // Unix second
}

// parseCampaign reads a message; ok is false for a malformed message and for a
// campaign that is not valid now.
func parseCampaign(value []byte, now time.Time) (c *campaign, ok bool) {
	c = &campaign{}
	if err := json.Unmarshal(value, &c.Campaign); err != nil || c.ID == "" || c.Restaurant == "" {
		return nil, false
	}
	c.trigger = now.Unix()
	if c.Start > c.trigger || c.End <= c.trigger {
		return nil, false
	}
	c.renderConstants()
	return c, true
}

// escaper keeps the separator of the two parts of a key unambiguous.
var escaper = strings.NewReplacer("%", "%25", ":", "%3A")

// renderConstants renders the constant parts of key and value.
func (c *campaign) renderConstants() {
	c.keyHead = escaper.Replace(c.ID) + ":"
	b := append([]byte(nil), `{"restaurant_id":`...)
	b = appendJSON(b, c.Restaurant)
	for _, f := range []struct{ name, value string }{
		{"adv_campaign_id", c.ID}, {"adv_campaign_content", c.Content},
		{"adv_campaign_owner", c.Owner}, {"adv_campaign_owner_contact", c.Contact},
	} {
		b = append(append(append(b, `,"`...), f.name...), `":`...)
		b = appendJSON(b, f.value)
	}
	b = strconv.AppendInt(append(b, `,"adv_campaign_datetime_start":`...), c.Start, 10)
	b = strconv.AppendInt(append(b, `,"adv_campaign_datetime_end":`...), c.End, 10)
	c.valueHead = string(append(b, `,"client_id":`...))
	b = strconv.AppendInt([]byte(`,"datetime_created":`), c.Created, 10)
	b = strconv.AppendInt(append(b, `,"trigger_datetime_created":`...), c.trigger, 10)
	c.valueTail = string(append(b, '}'))
}

// appendRecord appends key and value of one notification; the key ends at mid.
func (c *campaign) appendRecord(dst []byte, client string) (out []byte, mid int) {
	dst = append(dst, c.keyHead...)
	if strings.ContainsAny(client, "%:") {
		dst = append(dst, escaper.Replace(client)...)
	} else {
		dst = append(dst, client...)
	}
	mid = len(dst)
	dst = appendJSON(append(dst, c.valueHead...), client)
	return append(dst, c.valueTail...), mid
}

// appendJSON appends a string in quotes. Most ids need no escapes.
func appendJSON(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			text, err := json.Marshal(s)
			if err != nil { // cannot happen: a string always encodes
				return append(dst, `""`...)
			}
			return append(dst, text...)
		}
	}
	return append(append(append(dst, '"'), s...), '"')
}
