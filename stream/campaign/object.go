package campaign

import (
	"bytes"
	"encoding/json"
)

// fieldNames are the fields of a message, in the order of the contract.
var fieldNames = [...]string{
	"restaurant_id", "adv_campaign_id", "adv_campaign_content", "adv_campaign_owner", "adv_campaign_owner_contact",
	"adv_campaign_datetime_start", "adv_campaign_datetime_end", "datetime_created",
}

// object holds the text of a JSON object, and where in it the values of the message's
// fields stand. Unknown fields are passed over: an object of a million fields takes no
// more memory than its text.
type object struct {
	text   []byte
	values [len(fieldNames)][]byte // nil where the field is missing; of a field that is there twice, the last value
}

// parseObject reads one JSON object. Field names stay exact: encoding/json would take
// "Restaurant_ID" for restaurant_id when decoding into a struct. encoding/json checks
// the text: its time is linear, and it refuses more than maxNesting levels.
func parseObject(value []byte) (*object, *Refusal) {
	if refusal := diagnoseBytes(value); refusal != nil {
		return nil, refusal
	}
	if !json.Valid(value) {
		return nil, diagnoseText(value)
	}
	text := bytes.TrimSpace(value)
	if text[0] != '{' {
		return nil, diagnoseKind(text)
	}
	o := &object{text: text}
	o.eachField(func(name, raw []byte) bool {
		for i := range fieldNames {
			if string(name) == fieldNames[i] {
				o.values[i] = raw
			}
		}
		return true
	})
	return o, nil
}

// eachField calls fn with the name and the JSON text of each field's value, until fn
// returns false.
func (o *object) eachField(fn func(name, raw []byte) bool) {
	s := jsonSkipper{o.text[1:]}
	for s.skipSpace(); s.text[0] != '}'; s.skipSpace() {
		if s.text[0] == ',' {
			s.text = s.text[1:]
			s.skipSpace()
		}
		name := unquote(s.takeValue())
		s.skipSpace()
		s.text = s.text[1:] // the colon
		s.skipSpace()
		if !fn(name, s.takeValue()) {
			return
		}
	}
}

// unquote returns the text of a JSON string.
func unquote(raw []byte) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	var text string
	if json.Unmarshal(raw, &text) != nil { // cannot happen: raw is valid
		return raw
	}
	return []byte(text)
}

// jsonSkipper takes values off the front of a text that json.Valid has checked.
type jsonSkipper struct{ text []byte }

func (s *jsonSkipper) skipSpace() { s.text = bytes.TrimLeft(s.text, " \t\r\n") }

// takeValue takes the value in front, in one pass and without recursion.
func (s *jsonSkipper) takeValue() []byte {
	depth, n := 0, 0
	for {
		switch s.text[n] {
		case '"':
			n += stringLength(s.text[n:])
		case '{', '[':
			depth++
			n++
		case '}', ']':
			depth--
			n++
		case ' ', '\t', '\r', '\n', ',', ':': // between the values of an object or an array
			n++
		default:
			n += bytes.IndexAny(s.text[n:], " \t\r\n,]}") // there is one: the object's brace
		}
		if depth == 0 {
			value := s.text[:n]
			s.text = s.text[n:]
			return value
		}
	}
}

// stringLength returns the bytes of the JSON string in front, with its quotes.
func stringLength(text []byte) int {
	for n := 1; ; n++ {
		switch text[n] {
		case '\\':
			n++
		case '"':
			return n + 1
		}
	}
}
