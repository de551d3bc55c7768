package campaign

import (
	"fmt"
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
		{"ISO text with a zone", edit(t, `1659203516`, `"2022-07-30T17:51:56Z"`), `expected is the number 1659203516`},
		{"ISO text", edit(t, `1659203516`, `"2022-07-30T17:51:56"`), `expected is a number such as 1659203516`},
		{"a fraction", edit(t, `1659203516`, `1659203516.25`), "leave the fraction out"},
		{"a small fraction", edit(t, `1659131516`, `5e-3`), "leave the fraction out"},
		{"a huge exponent", edit(t, `1659131516`, `1e999999999`), "not a whole number of seconds"},
		{"a boolean", edit(t, `1659131516`, `true`), "it is a boolean"},
		{"an object", edit(t, `"first campaign"`, `{"ru":"x"}`), "is not a string: it is an object"},
		{"a number for an id", edit(t, `"123e4567-e89b-12d3-a456-426614174000"`, `42`), `restaurant_id is not a string: it is the number "42"; put it into quotes`},
		{"milliseconds", edit(t, `2659207116`, `1669207116000`), "milliseconds? 2022-11-23T12:38:36Z, which is 1669207116"},
		{"microseconds", edit(t, `2659207116`, `1669207116000000`), "microseconds? 2022-11-23"},
		{"nanoseconds", edit(t, `2659207116`, `1669207116000000000`), "nanoseconds? 2022-11-23"},
	} {
		_, err := Parse([]byte(c.value))
		if err == nil || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: reason %v does not say %q", c.name, err, c.reason)
		}
	}
	if _, err := Parse(nil); err == nil || !strings.Contains(err.Error(), "tombstone") {
		t.Errorf("a tombstone: %v", err)
	}
}

// Whatever a message holds, its reason is short and a text.
func FuzzReason(f *testing.F) {
	for _, s := range []string{"k:{}", "{'a", `{"payload":{}}`, "\x00\x00\x00\x00\x01x", `{"restaurant_id":` + strings.Repeat("9", 1000) + "}", edit(f, "first", "\xff"), `"{`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, v := range [][]byte{value, []byte(fmt.Sprintf(`{"restaurant_id":"a","adv_campaign_id":"b","adv_campaign_content":"","adv_campaign_owner":"","adv_campaign_owner_contact":"","adv_campaign_datetime_start":%s}`, value))} {
			if _, err := Parse(v); err != nil && (len(err.Error()) > 500 || !utf8.ValidString(err.Error())) {
				t.Errorf("%q: reason of %d bytes: %q", v, len(err.Error()), err)
			}
		}
	})
}
