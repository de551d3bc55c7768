package campaign

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The reason of a dead letter names the producer's mistake and its remedy, for the
// mistakes that producers make. This code runs for refused messages only, in time
// linear in their size, and keeps at most a few bytes of a message.

// knownPrefixes are the first bytes of values that the producer, or a tool before it,
// has compressed or encoded.
var knownPrefixes = []struct{ prefix, what string }{
	{"\x1f\x8b", "gzip; let the producer compress (compression.type), then Kafka's clients decompress"},
	{"\x28\xb5\x2f\xfd", "zstd; let the producer compress (compression.type), then Kafka's clients decompress"},
	{"\x04\x22\x4d\x18", "LZ4; let the producer compress (compression.type), then Kafka's clients decompress"},
	{"\xff\x06\x00\x00sNaPpY", "Snappy; let the producer compress (compression.type), then Kafka's clients decompress"},
	{"PK\x03\x04", "a ZIP file; send JSON"},
	{"Obj\x01", "an Avro file; send JSON"},
	{"\xac\xed\x00\x05", "a serialized Java object; send JSON"},
	{"\xff\xfe", "UTF-16; send UTF-8"},
	{"\xfe\xff", "UTF-16; send UTF-8"},
}

// diagnoseBytes returns the reason why a value is not a text that could be JSON; nil if
// it could.
func diagnoseBytes(value []byte) error {
	switch {
	case value == nil:
		return errors.New("the value is null (a tombstone), not an object; a campaign ends by a message with an earlier adv_campaign_datetime_end")
	case len(value) == 0:
		return errors.New("the value is empty")
	}
	for _, m := range knownPrefixes {
		if bytes.HasPrefix(value, []byte(m.prefix)) {
			return errors.New("the value is not JSON: it is " + m.what)
		}
	}
	if value[0] == 0 && len(value) > 5 {
		return fmt.Errorf("the value is not JSON: it begins with a schema registry's prefix (0x00 and the schema's id, %d); send JSON without the registry's serializer",
			binary.BigEndian.Uint32(value[1:5]))
	}
	if !utf8.Valid(value) {
		at := 0
		for at < len(value) {
			r, n := utf8.DecodeRune(value[at:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			at += n
		}
		return fmt.Errorf("the value is not valid UTF-8: byte 0x%02x at offset %d; is it in another encoding, such as Windows-1251?", value[at], at)
	}
	return nil
}

// prettyLine matches a line of an object that was printed over several lines.
var prettyLine = regexp.MustCompile(`^(?:[{}\]],?|"[^"]*"\s*:\s*(?:"(?:[^"\\]|\\.)*"|[-\w.]+|[{\[]),?)$`)

// diagnoseText returns the reason why a text is not JSON; err is the decoder's reason.
func diagnoseText(value []byte, err error) error {
	text := bytes.TrimSpace(value)
	brace := bytes.IndexByte(text, '{')
	switch {
	case len(text) == 0:
		return errors.New("the value is blank")
	case brace > 0 && text[0] != '[' && json.Valid(text[brace:]):
		return fmt.Errorf("the value is not JSON: %s stands before the object; if it is the record's key, the producer does not split it off (kcat: -K: ; console producer: parse.key=true)",
			quoteExcerpt(text[:brace]))
	case prettyLine.Match(text):
		return errors.New("the value is not JSON but one line of an object that was printed over several lines, each sent as a message; print it in one line")
	case bytes.HasPrefix(text, []byte("{'")):
		return errors.New("the value is not JSON but a printed Python dict; use json.dumps")
	case text[0] == '<':
		return errors.New("the value is not JSON but XML or HTML")
	case bytes.HasPrefix(text, []byte("Struct{")):
		return errors.New("the value is not JSON but a printed Struct of Kafka Connect; set value.converter to JsonConverter, with schemas.enable=false")
	case hasSeveralValues(text):
		return errors.New("the value is not JSON: more than one JSON value, or text behind one; send each campaign as a message of its own")
	case strings.Contains(err.Error(), "unexpected end of JSON input"):
		return errors.New("the value is not JSON: it ends in the middle; it was cut off")
	}
	if !strings.ContainsRune("{[", rune(text[0])) {
		return fmt.Errorf("the value is not JSON: it begins with %s", quoteExcerpt(text))
	}
	hint := ""
	switch {
	case strings.Contains(err.Error(), "looking for beginning of object key string"):
		hint = "; a name in double quotes must stand there, and no comma before the last }"
	case bytes.Contains(text, []byte("NaN")) || bytes.Contains(text, []byte("Infinity")):
		hint = "; JSON has no NaN and no Infinity"
	}
	return fmt.Errorf("the value is not JSON: %w%s", err, hint)
}

// hasSeveralValues reports whether text goes on behind its first JSON value.
func hasSeveralValues(text []byte) bool {
	d := json.NewDecoder(bytes.NewReader(text))
	var first json.RawMessage
	return d.Decode(&first) == nil && d.InputOffset() < int64(len(text))
}

// diagnoseType returns the reason why a JSON value of this kind is no campaign: it is
// not an object.
func diagnoseType(value []byte, kind string) error {
	text := bytes.TrimSpace(value)
	hint := ""
	switch kind {
	case "string":
		var inner string
		if json.Unmarshal(text, &inner) == nil && strings.HasPrefix(strings.TrimSpace(inner), "{") {
			hint = "; it holds an object: it was encoded twice"
		}
	case "array":
		hint = "; send each campaign as a message of its own"
	}
	return fmt.Errorf("the value is a JSON %s, not an object%s", kind, hint)
}

// knownEnvelopes are the field names under which other tools put the object itself.
var knownEnvelopes = []struct{ field, what string }{
	{"payload", "Kafka Connect's envelope; set value.converter.schemas.enable=false"},
	{"after", "a change event of Debezium; unwrap it (ExtractNewRecordState)"},
	{"data", "an envelope"},
	{"value", "an envelope"},
	{"message", "an envelope"},
	{"before", "a change event of Debezium; unwrap it (ExtractNewRecordState)"},
}

// diagnoseMissing returns the reason why an object has no field of that name.
func diagnoseMissing(fields map[string]json.RawMessage, name string) error {
	for _, e := range knownEnvelopes {
		if raw, ok := fields[e.field]; ok && bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) {
			return fmt.Errorf("%s is missing; there is %s with an object in it: %s", name, e.field, e.what)
		}
	}
	for other := range fields {
		if other != name && normalizeName(other) == normalizeName(name) {
			return fmt.Errorf("%s is missing; there is %s, and names count letter by letter", name, quoteExcerpt([]byte(other)))
		}
	}
	return fmt.Errorf("%s is missing", name)
}

// normalizeName strips case and separators: a producer that sends restaurantId means
// restaurant_id.
func normalizeName(name string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "", " ", "", ".", "").Replace(name))
}

// diagnoseField names the value that stands in the place of a string or a time.
func diagnoseField(name string, raw json.RawMessage, isTime bool) error {
	want := "a string"
	if isTime {
		want = "a whole number of seconds"
	}
	is := "it is " + quoteExcerpt(raw)
	var text string
	switch {
	case raw[0] == '{':
		is = "it is an object"
	case raw[0] == '[':
		is = "it is an array"
	case raw[0] == 't' || raw[0] == 'f':
		is = "it is a boolean"
	case raw[0] != '"' && !isTime:
		is = "it is the number " + quoteExcerpt(raw) + "; put it into quotes"
	case raw[0] != '"' && bytes.ContainsAny(raw, ".eE"):
		is = "it is " + quoteExcerpt(raw) + "; leave the fraction out"
	case raw[0] != '"':
		is = "it is " + quoteExcerpt(raw) + ", which is too large"
	case json.Unmarshal(raw, &text) == nil:
		is = "it is the string " + quoteExcerpt([]byte(text)) + "; expected is a number such as 1659203516"
		if at, err := time.Parse(time.RFC3339, strings.Replace(text, " ", "T", 1)); err == nil {
			is = fmt.Sprintf("it is the string %s; expected is the number %d", quoteExcerpt([]byte(text)), at.Unix())
		} else if _, err := strconv.ParseFloat(text, 64); err == nil {
			is = "it is the string " + quoteExcerpt([]byte(text)) + "; write it without quotes"
		}
	}
	return fmt.Errorf("%s is not %s: %s", name, want, is)
}

// quoteExcerpt quotes the first 40 bytes of a text.
func quoteExcerpt(text []byte) string {
	const most = 40
	if len(text) <= most {
		return strconv.Quote(string(text))
	}
	n := most
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return strconv.Quote(string(text[:n])) + "…"
}

// parseWholeNumber reads a JSON number that is whole although it has a fraction or an
// exponent, such as 1659203516.0 or 1.659203516e9.
func parseWholeNumber(raw []byte) (int64, bool) {
	mantissa, exponent := raw, 0
	if i := bytes.IndexAny(raw, "eE"); i >= 0 {
		e, err := strconv.Atoi(string(raw[i+1:]))
		if err != nil || e < -maxDigits || e > maxDigits {
			return 0, false
		}
		mantissa, exponent = raw[:i], e
	}
	whole, fraction, _ := bytes.Cut(mantissa, []byte("."))
	sign, whole, negative := "", bytes.TrimPrefix(whole, []byte("-")), bytes.HasPrefix(whole, []byte("-"))
	if negative {
		sign = "-"
	}
	digits := string(whole) + string(fraction) // × 10^(exponent - len(fraction))
	point := len(whole) + exponent
	switch {
	case point < 0:
		digits, point = strings.Repeat("0", -point)+digits, 0
	case point > len(digits):
		digits += strings.Repeat("0", point-len(digits))
	}
	if strings.Trim(digits[point:], "0") != "" || len(digits[:point]) > maxDigits {
		return 0, false
	}
	n, err := strconv.ParseInt(sign+"0"+digits[:point], 10, 64)
	return n, err == nil
}

// maxDigits bounds the digits of a number that is read as a time.
const maxDigits = 30

// unitHint names the unit in which a time that is too large would be a date.
func unitHint(at int64) string {
	for _, u := range []struct {
		name   string
		second int64
	}{{"milliseconds", 1e3}, {"microseconds", 1e6}, {"nanoseconds", 1e9}} {
		if seconds := at / u.second; at > 0 && seconds <= MaxUnix {
			return fmt.Sprintf(" (%s? %s, which is %d)", u.name, time.Unix(seconds, 0).UTC().Format(time.RFC3339), seconds)
		}
	}
	return ""
}
