package campaign

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// A reason names the producer's mistake and its remedy.
func TestReasonsNameTheMistake(t *testing.T) {
	t.Parallel()
	flat := strings.ReplaceAll(contractExample, "\n", "")
	for _, c := range []struct{ name, value, reason string }{
		{"kcat without -K", "first_message:" + flat, `"first_message:" stands before the object`},
		{"a quoted key", `"first":` + flat, `stands before the object`},
		{"console producer", "key\t" + flat, `"key\t" stands before the object`},
		{"a line of an object", `"adv_campaign_owner": "Ivanov \"I\" Ivanovich",`, "one line of an object"},
		{"its first line", "{", "one line of an object"},
		{"its last line", "}", "one line of an object"},
		{"a time's line", `  "datetime_created": 1659131516`, "one line of an object"},
		{"a Python dict", "{'restaurant_id': 'x'}", "json.dumps"},
		{"a comma too many", flat[:len(flat)-1] + ",}", "no comma before the last }"},
		{"a NaN", edit(t, `1659203516`, `NaN`), "JSON has no NaN"},
		{"cut off", flat[:100], "it was cut off"},
		{"two in one", flat + "\n" + flat, "more than one JSON value"},
		{"encoded twice", strconv.Quote(flat), "encoded twice"},
		{"an array", "[" + flat + "]", "each campaign as a message of its own"},
		{"XML", "<campaign/>", "XML"},
		{"a printed Struct", "Struct{restaurant_id=x}", "JsonConverter"},
		{"Kafka Connect", `{"schema":{"type":"struct"},"payload":` + flat + `}`, "value.converter.schemas.enable=false"},
		{"Debezium", `{"before":null,"op":"c","after":` + flat + `}`, "ExtractNewRecordState"},
		{"an envelope", `{"data":` + flat + `}`, "there is data with an object in it"},
		{"a schema registry", "\x00\x00\x00\x00\x07" + flat, "schema registry's prefix (0x00 and the schema's id, 7)"},
		{"Avro", "\x00\x00\x00\x00\x07\x02\xff", "schema registry's prefix"},
		{"gzip", "\x1f\x8b\x08\x00", "gzip"},
		{"zstd", "\x28\xb5\x2f\xfd", "zstd"},
		{"UTF-16", "\xff\xfe{\x00", "UTF-16"},
		{"Windows-1251", edit(t, "first", "\xd1\xea"), "byte 0xd1 at offset 14"},
		{"a text", "Гоша:Хороший", `not JSON: it begins with "Гоша:Хороший"`},
		{"blank", " \r\n", "blank"},
		{"case of a name", edit(t, `"restaurant_id"`, `"Restaurant_ID"`), `there is "Restaurant_ID"`},
		{"camel case", edit(t, `"adv_campaign_id"`, `"advCampaignId"`), `there is "advCampaignId"`},
		{"a string of digits", edit(t, `1659203516`, `"1659203516"`), `adv_campaign_datetime_start is not a whole number of seconds: it is the string "1659203516"; write it without quotes`},
		{"a string of milliseconds", edit(t, `1659203516`, `"1659203516000"`), `write it without quotes and in seconds: 1659203516 is 2022-07-30T17:51:56Z`},
		{"a string of a float", edit(t, `1659203516`, `"1659203516.25"`), `write it without quotes and without a fraction`},
		{"ISO text with a zone", edit(t, `1659203516`, `"2022-07-30T17:51:56Z"`), `a time in ISO 8601; the number 1659203516 is expected`},
		{"ISO text with an offset", edit(t, `1659203516`, `"2022-07-30 20:51:56.123+0300"`), `a time in ISO 8601; the number 1659203516 is expected`},
		{"ISO text", edit(t, `1659203516`, `"2022-07-30T17:51:56"`), `a time in ISO 8601 without a zone; a number such as 1659203516 is expected`},
		{"a day", edit(t, `1659203516`, `"2022-07-30"`), `a time in ISO 8601 without a zone`},
		{"a word", edit(t, `1659203516`, `"tomorrow"`), `it is the string "tomorrow", and a number such as 1659203516 is expected`},
		{"a fraction", edit(t, `1659203516`, `1659203516.25`), "adv_campaign_datetime_start is not a whole number of seconds: it is the number 1659203516.25; leave the fraction out"},
		{"a small fraction", edit(t, `1659131516`, `5e-3`), "leave the fraction out"},
		{"a huge exponent", edit(t, `1659131516`, `1e999999999`), "not a whole number of seconds"},
		{"a huge number", edit(t, `1659131516`, strings.Repeat("9", 1000)), "datetime_created is not a whole number of seconds: it is the number 9999999999999999999999999999999999999999…, which is too large"},
		{"a boolean", edit(t, `1659131516`, `true`), "it is a boolean"},
		{"an object", edit(t, `"first campaign"`, `{"ru":"x"}`), "is not a string: it is an object"},
		{"a number for an id", edit(t, `"123e4567-e89b-12d3-a456-426614174000"`, `42`), `restaurant_id is not a string: it is the number 42; put it into quotes`},
		{"milliseconds", edit(t, `2659207116`, `1669207116000`), "adv_campaign_datetime_end is 1669207116000, which is not a Unix second of the years 1970 to 9999; it looks like milliseconds: in seconds, 1669207116 is 2022-11-23T12:38:36Z"},
		{"microseconds", edit(t, `2659207116`, `1669207116000000`), "looks like microseconds"},
		{"nanoseconds", edit(t, `2659207116`, `1669207116000000000`), "looks like nanoseconds"},
		{"before 1970", edit(t, `1659131516`, `-1`), "datetime_created is -1, which is not a Unix second of the years 1970 to 9999"},
		{"too many levels", edit(t, `{`, `{"x":`+strings.Repeat(`[`, 1_000_000)), "nested more than 10000 levels deep"},
	} {
		_, err := Parse([]byte(c.value))
		if err == nil || !strings.Contains(err.Reason, c.reason) {
			t.Errorf("%s: reason %v does not say %q", c.name, err, c.reason)
		}
	}
	if _, err := Parse(nil); err == nil || !strings.Contains(err.Reason, "tombstone") {
		t.Errorf("a tombstone: %v", err)
	}
}

// docs/messages.md lists exactly the classes.
func TestReasonClassesAreDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/messages.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []ReasonClass
	_, table, _ := strings.Cut(string(doc), "| class | the message |")
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\|").FindAllStringSubmatch(table, -1) {
		listed = append(listed, ReasonClass(row[1]))
	}
	if !slices.Equal(listed, ReasonClasses[:]) {
		t.Errorf("documented %q, want %q", listed, ReasonClasses)
	}
}

// Whatever a message holds, its reason is short and a text.
func FuzzReason(f *testing.F) {
	for _, s := range []string{"k:{}", "{'a", `{"payload":{}}`, "\x00\x00\x00\x00\x01x", `{"restaurant_id":` + strings.Repeat("9", 1000) + "}", edit(f, "first", "\xff"), `"{`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, v := range [][]byte{value, []byte(fmt.Sprintf(`{"restaurant_id":"a","adv_campaign_id":"b","adv_campaign_content":"","adv_campaign_owner":"","adv_campaign_owner_contact":"","adv_campaign_datetime_start":%s}`, value))} {
			if _, err := Parse(v); err != nil && (len(err.Reason) > 500 || !utf8.ValidString(err.Reason)) {
				t.Errorf("%q: reason of %d bytes: %q", v, len(err.Reason), err.Reason)
			}
		}
	})
}

// Each kind of mistake has its class, and each class of this package is met.
func TestReasonsHaveAClass(t *testing.T) {
	t.Parallel()
	met := map[ReasonClass]bool{}
	for value, want := range map[string]ReasonClass{
		"{": ClassNotJSON, "": ClassNotJSON, "\x1f\x8b": ClassNotJSON, "\xff": ClassNotJSON, "[]": ClassNotObject, "null": ClassNotObject, `"x"`: ClassNotObject, "7": ClassNotObject,
		"{}":                                  ClassMissingField,
		edit(t, `"first campaign"`, `null`):   ClassMissingField,
		edit(t, `"first campaign"`, `7`):      ClassWrongType,
		edit(t, `1659203516`, `"1659203516"`): ClassWrongType,
		edit(t, `first`, `\u0000`):            ClassBadText,
		edit(t, `first`, `\ud83c`):            ClassBadText,
		edit(t, `"123e4567-e89b-12d3-a456-426614174000"`, `""`): ClassBadID,
		edit(t, `1659203516`, `1659203516.5`):                   ClassBadTime,
		edit(t, `1659203516`, `1659203516000`):                  ClassBadTime,
		edit(t, `2659207116`, `1659203516`):                     ClassBadTime,
	} {
		if _, refusal := Parse([]byte(value)); refusal == nil || refusal.Class != want {
			t.Errorf("%.100s: %v, want class %s", value, refusal, want)
		}
		met[want] = true
	}
	if _, refusal := Parse(nil); refusal == nil || refusal.Class != ClassTombstone {
		t.Errorf("a tombstone: %v", refusal)
	}
	if len(met) != 7 {
		t.Errorf("%d classes are tested", len(met))
	}
}
