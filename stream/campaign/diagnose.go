package campaign

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
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
func diagnoseBytes(value []byte) *Refusal {
	switch {
	case value == nil:
		return Refuse(ClassTombstone, "the value is null (a tombstone), not an object; a campaign ends by a message with an earlier adv_campaign_datetime_end")
	case len(value) == 0:
		return Refuse(ClassNotJSON, "the value is empty")
	}
	for _, m := range knownPrefixes {
		if bytes.HasPrefix(value, []byte(m.prefix)) {
			return Refuse(ClassNotJSON, "the value is not JSON: it is %s", m.what)
		}
	}
	if value[0] == 0 && len(value) > 5 {
		return Refuse(ClassNotJSON, "the value is not JSON: it begins with a schema registry's prefix (0x00 and the schema's id, %d); send JSON without the registry's serializer",
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
		return Refuse(ClassNotJSON, "the value is not valid UTF-8: byte 0x%02x at offset %d; is it in another encoding, such as Windows-1251?", value[at], at)
	}
	return nil
}

// maxNesting is the bound of encoding/json.
const maxNesting = 10_000

// prettyLine matches a line of an object that was printed over several lines.
var prettyLine = regexp.MustCompile(`^(?:[{}\]],?|"[^"]*"\s*:\s*(?:"(?:[^"\\]|\\.)*"|[-\w.]+|[{\[]),?)$`)

// diagnoseText returns the reason why a text is not JSON.
func diagnoseText(value []byte) *Refusal {
	text := bytes.TrimSpace(value)
	var whole json.RawMessage
	reason := fmt.Sprint(json.Unmarshal(value, &whole))
	brace := bytes.IndexByte(text, '{')
	switch {
	case len(text) == 0:
		return Refuse(ClassNotJSON, "the value is blank")
	case brace > 0 && text[0] != '[' && json.Valid(text[brace:]):
		return Refuse(ClassNotJSON, "the value is not JSON: %s stands before the object; if it is the record's key, the producer does not split it off (kcat: -K: ; console producer: parse.key=true)",
			quoteExcerpt(text[:brace]))
	case prettyLine.Match(text):
		return Refuse(ClassNotJSON, "the value is not JSON but one line of an object that was printed over several lines, each sent as a message; print it in one line")
	case bytes.HasPrefix(text, []byte("{'")):
		return Refuse(ClassNotJSON, "the value is not JSON but a printed Python dict; use json.dumps")
	case text[0] == '<':
		return Refuse(ClassNotJSON, "the value is not JSON but XML or HTML")
	case bytes.HasPrefix(text, []byte("Struct{")):
		return Refuse(ClassNotJSON, "the value is not JSON but a printed Struct of Kafka Connect; set value.converter to JsonConverter, with schemas.enable=false")
	case hasSeveralValues(text):
		return Refuse(ClassNotJSON, "the value is not JSON: more than one JSON value, or text behind one; send each campaign as a message of its own")
	case strings.Contains(reason, "exceeded max depth"):
		return Refuse(ClassNotJSON, "the value is JSON nested more than %d levels deep", maxNesting)
	case strings.Contains(reason, "unexpected end of JSON input"):
		return Refuse(ClassNotJSON, "the value is not JSON: it ends in the middle; it was cut off")
	}
	if !strings.ContainsRune("{[", rune(text[0])) {
		return Refuse(ClassNotJSON, "the value is not JSON: it begins with %s", quoteExcerpt(text))
	}
	hint := ""
	switch {
	case strings.Contains(reason, "looking for beginning of object key string"):
		hint = "; a name in double quotes must stand there, and no comma before the last }"
	case bytes.Contains(text, []byte("NaN")) || bytes.Contains(text, []byte("Infinity")):
		hint = "; JSON has no NaN and no Infinity"
	}
	return Refuse(ClassNotJSON, "the value is not JSON: %s%s", reason, hint)
}

// hasSeveralValues reports whether text goes on behind its first JSON value.
func hasSeveralValues(text []byte) bool {
	d := json.NewDecoder(bytes.NewReader(text))
	var first json.RawMessage
	return d.Decode(&first) == nil && d.InputOffset() < int64(len(text))
}

// diagnoseKind returns the reason why a JSON value is no campaign: it is not an object.
func diagnoseKind(text []byte) *Refusal {
	kind, hint := "number", ""
	switch text[0] {
	case 'n':
		kind = "null"
	case 't', 'f':
		kind = "boolean"
	case '[':
		kind, hint = "array", "; send each campaign as a message of its own"
	case '"':
		kind = "string"
		if strings.HasPrefix(strings.TrimSpace(string(unquote(text))), "{") {
			hint = "; it holds an object: it was encoded twice"
		}
	}
	return Refuse(ClassNotObject, "the value is a JSON %s, not an object%s", kind, hint)
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

// diagnoseMissing returns the reason why the object has no field of that name.
func (o *object) diagnoseMissing(name string) *Refusal {
	envelope, similar := len(knownEnvelopes), ""
	o.eachField(func(other, raw []byte) bool {
		for i, e := range knownEnvelopes[:envelope] {
			if string(other) == e.field && raw[0] == '{' {
				envelope = i
				break
			}
		}
		if similar == "" && len(other) <= maxSimilarName && normalizeName(string(other)) == normalizeName(name) {
			similar = string(other)
		}
		return true
	})
	switch {
	case envelope < len(knownEnvelopes):
		e := knownEnvelopes[envelope]
		return Refuse(ClassMissingField, "%s is missing; there is %s with an object in it: %s", name, e.field, e.what)
	case similar != "":
		return Refuse(ClassMissingField, "%s is missing; there is %s, and names count letter by letter", name, quoteExcerpt([]byte(similar)))
	}
	return Refuse(ClassMissingField, "%s is missing", name)
}

// maxSimilarName bounds the names that are compared with a missing one.
const maxSimilarName = 100

// normalizeName strips case and separators: a producer that sends restaurantId means
// restaurant_id.
func normalizeName(name string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "", " ", "", ".", "").Replace(name))
}

// diagnoseString returns the reason why a value is not the string that must stand there.
func diagnoseString(name string, raw []byte) *Refusal {
	is := describeValue(raw)
	if raw[0] == '-' || '0' <= raw[0] && raw[0] <= '9' {
		is += "; put it into quotes"
	}
	return Refuse(ClassWrongType, "%s is not a string: it is %s", name, is)
}

// describeValue names a JSON value that is neither null nor missing.
func describeValue(raw []byte) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case 't', 'f':
		return "a boolean"
	case '"':
		return "the string " + quoteExcerpt(unquote(raw))
	}
	return "the number " + cutExcerpt(raw)
}

// excerptBytes bounds the bytes of a message that a reason quotes.
const excerptBytes = 40

// quoteExcerpt quotes the beginning of a text.
func quoteExcerpt(text []byte) string {
	if len(text) <= excerptBytes {
		return strconv.Quote(string(text))
	}
	n := excerptBytes
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return strconv.Quote(string(text[:n])) + "…"
}

// cutExcerpt returns the beginning of a number.
func cutExcerpt(number []byte) string {
	if len(number) <= excerptBytes {
		return string(number)
	}
	return string(number[:excerptBytes]) + "…"
}
