package campaign

import (
	"strings"
	"unicode/utf8"
)

// maxSharedText bounds the messages whose ids stay substrings of the message's text.
const maxSharedText = 1 << 10

// scanPlain decodes the plain form of nearly all messages: one object with exactly the
// eight fields, each once, strings without escapes, whole numbers. ok is false for
// every other message, wrong or merely unusual: decodeJSON then decodes it or names the
// mistake. Where ok is true, both return the same campaign (FuzzParseCampaign).
//
// encoding/json makes 45 allocations and takes six times as long
// (BenchmarkParseCampaign).
func scanPlain(value []byte) (c *Campaign, ok bool) {
	if !utf8.Valid(value) {
		return nil, false
	}
	s := textScanner{text: string(value)} // the fields are substrings of this one copy
	c = &Campaign{}
	seen := 0
	if !s.takeByte('{') {
		return nil, false
	}
	for first := true; !s.takeByte('}'); first = false {
		if !first && !s.takeByte(',') {
			return nil, false
		}
		name, ok := s.takeString()
		if !ok || !s.takeByte(':') {
			return nil, false
		}
		var field int
		switch name {
		case "restaurant_id":
			field, ok = 1<<0, s.takeStringInto(&c.RestaurantID)
		case "adv_campaign_id":
			field, ok = 1<<1, s.takeStringInto(&c.ID)
		case "adv_campaign_content":
			field, ok = 1<<2, s.takeStringInto(&c.Content)
		case "adv_campaign_owner":
			field, ok = 1<<3, s.takeStringInto(&c.Owner)
		case "adv_campaign_owner_contact":
			field, ok = 1<<4, s.takeStringInto(&c.OwnerContact)
		case "adv_campaign_datetime_start":
			field, ok = 1<<5, s.takeNumberInto(&c.Start)
		case "adv_campaign_datetime_end":
			field, ok = 1<<6, s.takeNumberInto(&c.End)
		case "datetime_created":
			field, ok = 1<<7, s.takeNumberInto(&c.Created)
		default:
			return nil, false
		}
		if !ok || seen&field != 0 {
			return nil, false
		}
		seen |= field
	}
	s.skipSpace()
	if len(value) > maxSharedText { // the lane keeps ids for a long time, and a substring would keep the whole text
		c.ID, c.RestaurantID = strings.Clone(c.ID), strings.Clone(c.RestaurantID)
	}
	return c, seen == 1<<8-1 && s.text == ""
}

// textScanner reads JSON from the front of text.
type textScanner struct{ text string }

// skipSpace drops the white space in front.
func (s *textScanner) skipSpace() {
	for s.text != "" && (s.text[0] == ' ' || s.text[0] == '\t' || s.text[0] == '\n' || s.text[0] == '\r') {
		s.text = s.text[1:]
	}
}

// takeByte drops the white space in front and then c. It returns false where another
// byte stands there.
func (s *textScanner) takeByte(c byte) bool {
	s.skipSpace()
	if s.text == "" || s.text[0] != c {
		return false
	}
	s.text = s.text[1:]
	return true
}

// takeString takes a string without escapes.
func (s *textScanner) takeString() (text string, ok bool) {
	if !s.takeByte('"') {
		return "", false
	}
	for i := range len(s.text) {
		switch c := s.text[i]; {
		case c == '"':
			text, s.text = s.text[:i], s.text[i+1:]
			return text, true
		case c < ' ', c == '\\':
			return "", false
		}
	}
	return "", false
}

// takeStringInto takes a string without escapes into to.
func (s *textScanner) takeStringInto(to *string) (ok bool) {
	*to, ok = s.takeString()
	return ok
}

// takeNumberInto takes a whole number without a sign, of at most 18 digits, into to.
func (s *textScanner) takeNumberInto(to *int64) bool {
	const most = 18 // digits
	s.skipSpace()
	n, digits := int64(0), 0
	for digits < len(s.text) && digits <= most && '0' <= s.text[digits] && s.text[digits] <= '9' {
		n = 10*n + int64(s.text[digits]-'0')
		digits++
	}
	if digits == 0 || digits > most || s.text[0] == '0' && digits > 1 {
		return false
	}
	*to, s.text = n, s.text[digits:]
	return true // the caller takes the '}' or ',' behind it
}
