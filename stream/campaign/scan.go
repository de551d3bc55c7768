package campaign

import (
	"strings"
	"unicode/utf8"
)

// keptText is how large a message may be for its ids to be parts of its text.
const keptText = 1 << 10

// scanPlain is Parse for the plain form in which nearly all messages
// come: one object with exactly the eight fields, each once, strings without
// escapes, whole numbers. ok is false for anything else, wrong or merely
// unusual: Parse then decides, and says why. Where ok is true both give
// the same campaign (FuzzParseCampaign).
//
// encoding/json takes 45 allocations and six times as long
// (BenchmarkParseCampaign).
func scanPlain(value []byte) (c *Campaign, ok bool) {
	if !utf8.Valid(value) {
		return nil, false
	}
	s := scanner{text: string(value)} // the fields are parts of this one copy
	c = &Campaign{}
	seen := 0
	if !s.next('{') {
		return nil, false
	}
	for first := true; !s.next('}'); first = false {
		if !first && !s.next(',') {
			return nil, false
		}
		name, ok := s.string()
		if !ok || !s.next(':') {
			return nil, false
		}
		var field int
		switch name {
		case "restaurant_id":
			field, ok = 1<<0, s.stringTo(&c.RestaurantID)
		case "adv_campaign_id":
			field, ok = 1<<1, s.stringTo(&c.ID)
		case "adv_campaign_content":
			field, ok = 1<<2, s.stringTo(&c.Content)
		case "adv_campaign_owner":
			field, ok = 1<<3, s.stringTo(&c.Owner)
		case "adv_campaign_owner_contact":
			field, ok = 1<<4, s.stringTo(&c.OwnerContact)
		case "adv_campaign_datetime_start":
			field, ok = 1<<5, s.numberTo(&c.Start)
		case "adv_campaign_datetime_end":
			field, ok = 1<<6, s.numberTo(&c.End)
		case "datetime_created":
			field, ok = 1<<7, s.numberTo(&c.Created)
		default:
			return nil, false
		}
		if !ok || seen&field != 0 {
			return nil, false
		}
		seen |= field
	}
	s.space()
	if len(value) > keptText { // the lane remembers ids for long, and would hold the content by them
		c.ID, c.RestaurantID = strings.Clone(c.ID), strings.Clone(c.RestaurantID)
	}
	return c, seen == 1<<8-1 && s.text == ""
}

// scanner reads JSON from the front of text.
type scanner struct{ text string }

func (s *scanner) space() {
	for s.text != "" && (s.text[0] == ' ' || s.text[0] == '\t' || s.text[0] == '\n' || s.text[0] == '\r') {
		s.text = s.text[1:]
	}
}

// next takes c, and space before it.
func (s *scanner) next(c byte) bool {
	s.space()
	if s.text == "" || s.text[0] != c {
		return false
	}
	s.text = s.text[1:]
	return true
}

// string takes a string without escapes.
func (s *scanner) string() (text string, ok bool) {
	if !s.next('"') {
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

func (s *scanner) stringTo(to *string) (ok bool) {
	*to, ok = s.string()
	return ok
}

// numberTo takes a whole number that is not negative and surely fits.
func (s *scanner) numberTo(to *int64) bool {
	const most = 18 // digits
	s.space()
	n, digits := int64(0), 0
	for digits < len(s.text) && digits <= most && '0' <= s.text[digits] && s.text[digits] <= '9' {
		n = 10*n + int64(s.text[digits]-'0')
		digits++
	}
	if digits == 0 || digits > most || s.text[0] == '0' && digits > 1 {
		return false
	}
	*to, s.text = n, s.text[digits:]
	return true // what follows is for the caller, who takes '}' or ','
}
