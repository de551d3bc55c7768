package campaign

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"dinnerbell/internal/budget"
)

// contractExample is the campaign of the contract, letter for letter.
const contractExample = `{"restaurant_id":"123e4567-e89b-12d3-a456-426614174000",
 "adv_campaign_id":"123e4567-e89b-12d3-a456-426614174003",
 "adv_campaign_content":"first campaign",
 "adv_campaign_owner":"Ivanov Ivan Ivanovich",
 "adv_campaign_owner_contact":"iiivanov@restaurant.ru",
 "adv_campaign_datetime_start":1659203516,
 "adv_campaign_datetime_end":2659207116,
 "datetime_created":1659131516}`

func TestParseCampaignTakesTheContractsExample(t *testing.T) {
	c, err := Parse([]byte(contractExample))
	if err != nil {
		t.Fatal(err)
	}
	want := Campaign{"123e4567-e89b-12d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174003", "first campaign",
		"Ivanov Ivan Ivanovich", "iiivanov@restaurant.ru", 1659203516, 2659207116, 1659131516}
	if *c != want {
		t.Errorf("got %+v, want %+v", *c, want)
	}
}

// edit returns the example with one replacement made.
func edit(t testing.TB, old, with string) string {
	t.Helper()
	if !strings.Contains(contractExample, old) {
		t.Fatalf("the example does not contain %q", old)
	}
	return strings.Replace(contractExample, old, with, 1)
}

func TestParseCampaignAccepts(t *testing.T) {
	for name, value := range acceptedMessages(t) {
		if _, err := Parse([]byte(value)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// acceptedMessages are messages in unusual forms, by name.
func acceptedMessages(t testing.TB) map[string]string {
	t.Helper()
	return map[string]string{
		"unknown fields":              edit(t, `{`, `{"x":{"y":[1,null]},`),
		"another case is unknown":     edit(t, `{`, `{"Restaurant_ID":7,`),
		"empty content":               edit(t, `"first campaign"`, `""`),
		"an id that is no uuid":       edit(t, `"123e4567-e89b-12d3-a456-426614174000"`, `"кафе №1"`),
		"an id of 1024 bytes":         edit(t, `"123e4567-e89b-12d3-a456-426614174000"`, `"`+strings.Repeat("x", 1024)+`"`),
		"a surrogate pair":            edit(t, `first`, `\ud83c\udf55`),
		"an escaped backslash u":      edit(t, `first`, `\\ud83c`),
		"a replacement character":     edit(t, `first`, `\ufffd`),
		"the last second of 9999":     edit(t, `2659207116`, `253402300799`),
		"the first second of 1970":    edit(t, `1659131516`, `0`),
		"white space around":          " \n" + contractExample + "\t",
		"a byte order mark":           "\ufeff" + contractExample,
		"a whole float":               edit(t, `1659203516`, `1659203516.0`),
		"an exponent":                 edit(t, `1659203516`, `1.659203516e9`),
		"a large exponent":            edit(t, `1659203516`, `16592035160000e-4`),
		"a zero with a fraction":      edit(t, `1659131516`, `-0.000`),
		"a field twice: last counts":  edit(t, `{`, `{"adv_campaign_content":7,`),
		"an escaped name":             edit(t, `"restaurant_id"`, `"restaurant\u005fid"`),
		"unknown fields of all kinds": edit(t, `{`, `{"a":[],"b":{},"c":"\\\"}","d":-1.5e3 ,"e":true,"f":null,"g":[{"restaurant_id":1},[[ ] ]] ,`),
		"many levels":                 edit(t, `{`, `{"x":`+strings.Repeat(`[`, 9_000)+strings.Repeat(`]`, 9_000)+`,`),
		"many unknown fields":         edit(t, `{`, `{`+strings.Repeat(`"x":0,`, 100_000)),
		"a long fraction of zeros":    edit(t, `1659203516`, `1659203516.`+strings.Repeat("0", 1000)),
	}
}

// The plain form is scanned, whatever the order of its fields.
func TestPlainCampaignsAreScanned(t *testing.T) {
	for name, value := range map[string]string{
		"the example":   contractExample,
		"without space": strings.Join(strings.Fields(edit(t, "first campaign", "first")), ""),
		"not ASCII":     edit(t, "first campaign", "пицца 🍕"),
		"other order": `{"datetime_created":0,` + strings.Replace(strings.TrimSpace(contractExample)[1:], `,
 "datetime_created":1659131516`, "", 1),
	} {
		c, ok := scanPlain([]byte(value))
		if !ok {
			t.Errorf("%s: not scanned: %s", name, value)
			continue
		}
		if parsed, err := decodeJSON([]byte(value)); err != nil || *parsed != *c {
			t.Errorf("%s: scanned %+v, parsed %+v: %v", name, c, parsed, err)
		}
	}
}

func TestParseCampaignRefuses(t *testing.T) {
	for _, c := range refusedMessages(t) {
		_, err := Parse([]byte(c.value))
		if err == nil {
			t.Errorf("%s: accepted", c.name)
		} else if !strings.Contains(err.Reason, c.reason) {
			t.Errorf("%s: reason %q does not say %q", c.name, err, c.reason)
		}
	}
}

// refusedMessage is a message that is no campaign, with a part of the reason.
type refusedMessage struct{ name, value, reason string }

func refusedMessages(t testing.TB) []refusedMessage {
	t.Helper()
	return []refusedMessage{
		{"empty value", ``, "is empty"},
		{"no JSON", `campaign!`, "not JSON"},
		{"cut off", contractExample[:100], "not JSON"},
		{"trailing data", contractExample + "{}", "not JSON"},
		{"an array", `[1]`, "array, not an object"},
		{"a null", `null`, "not an object"},
		{"a string", `"x"`, "not an object"},
		{"missing", edit(t, `"adv_campaign_owner"`, `"owner"`), "adv_campaign_owner is missing"},
		{"null field", edit(t, `"first campaign"`, `null`), "adv_campaign_content is null"},
		{"number for string", edit(t, `"first campaign"`, `5`), "adv_campaign_content is not a string"},
		{"string for number", edit(t, `1659203516`, `"1659203516"`), "adv_campaign_datetime_start is not a whole number"},
		{"fraction", edit(t, `1659203516`, `1659203516.5`), "not a whole number"},
		{"huge number", edit(t, `1659203516`, `99999999999999999999`), "not a whole number"},
		{"empty restaurant", edit(t, `"123e4567-e89b-12d3-a456-426614174000"`, `""`), "restaurant_id is empty"},
		{"empty campaign id", edit(t, `"123e4567-e89b-12d3-a456-426614174003"`, `""`), "adv_campaign_id is empty"},
		{"an id of 1025 bytes", edit(t, `"123e4567-e89b-12d3-a456-426614174000"`, `"`+strings.Repeat("x", 1025)+`"`), "1025 bytes"},
		{"end is start", edit(t, `2659207116`, `1659203516`), "is not after"},
		{"end before start", edit(t, `2659207116`, `1659203515`), "is not after"},
		{"milliseconds", edit(t, `2659207116`, `1669207116000`), "looks like milliseconds"},
		{"negative", edit(t, `1659131516`, `-1`), "not a Unix second"},
		{"year 10000", edit(t, `2659207116`, `253402300800`), "not a Unix second"},
		{"U+0000", edit(t, `first`, `\u0000`), "U+0000"},
		{"invalid UTF-8", edit(t, `first`, "\xff"), "not valid UTF-8"},
		{"half a surrogate pair", edit(t, `first`, `\ud83c`), "surrogate"},
		{"the other half", edit(t, `first`, `\uDF55x`), "surrogate"},
		{"two high halves", edit(t, `first`, `\uD83C\uD83C`), "surrogate"},
	}
}

// A time that is a little too late is no time in a smaller unit: nobody sends milliseconds
// of the year 1978.
func TestTimesBehindTheYear9999(t *testing.T) {
	t.Parallel()
	for at, mistaken := range map[string]string{
		"253402300800": "", "253402300801": "", "900000000000": "", "946684800000": "milliseconds", "1669207116000": "milliseconds",
		"253402300800000": "", "1669207116000000": "microseconds", "1669207116000000000": "nanoseconds", "-1": "",
	} {
		_, err := Parse([]byte(edit(t, `2659207116`, at)))
		if err == nil || err.Class != ClassBadTime || !strings.Contains(err.Reason, "of the years 1970 to 9999") {
			t.Errorf("%s: %v", at, err)
			continue
		}
		if _, unit, hint := strings.Cut(err.Reason, "looks like "); hint != (mistaken != "") || !strings.HasPrefix(unit, mistaken) {
			t.Errorf("%s: %s; want a hint at %q", at, err.Reason, mistaken)
		}
	}
}

func FuzzParseCampaign(f *testing.F) {
	f.Add([]byte(contractExample))
	f.Add([]byte(edit(f, `first`, `\ud83c\udf55`)))
	f.Add([]byte(edit(f, `1659203516`, `01659203516`)))
	f.Add([]byte(edit(f, `1659203516`, ` 0 `)))
	f.Add([]byte(edit(f, `"adv_campaign_owner"`, `"adv_campaign_id"`)))
	f.Add([]byte(edit(f, `}`, ` ,"more":[{}]}`)))
	f.Add([]byte(edit(f, `{`, `{"a":[],"b":{},"c":"\\\"}","d":-1.5e3 ,"e":true,"f":null,"g":[{"restaurant_id":1},[[ ] ]] ,`)))
	f.Add([]byte(edit(f, `"restaurant_id"`, `"restaurant\u005fid"`)))
	f.Fuzz(func(t *testing.T, value []byte) {
		if scanned, ok := scanPlain(value); ok {
			if parsed, err := decodeJSON(value); err != nil || *parsed != *scanned {
				t.Errorf("scanned %+v, parsed %+v: %v", scanned, parsed, err)
			}
		}
		var fields map[string]json.RawMessage
		if o, refusal := parseObject(value); refusal == nil {
			if err := json.Unmarshal(value, &fields); err != nil {
				t.Fatalf("%q: %v", value, err)
			}
			for i, name := range fieldNames {
				if string(o.values[i]) != string(fields[name]) {
					t.Errorf("%s is %q, want %q", name, o.values[i], fields[name])
				}
			}
		} else if json.Unmarshal(value, &fields) == nil && fields != nil && utf8.Valid(value) {
			t.Errorf("%q: %v", value, refusal)
		}
		c, err := Parse(value)
		if err != nil {
			return
		}
		if strings.ContainsRune(fmt.Sprint(*c), 0) || c.End <= c.Start {
			t.Errorf("accepted %+v", *c)
		}
	})
}

func TestCampaignAllocations(t *testing.T) {
	text := []byte(contractExample)
	budget.Check(t, "allocs_campaign", testing.AllocsPerRun(100, func() {
		if _, err := Parse(text); err != nil {
			t.Fatal(err)
		}
	}))
}

// BenchmarkParseCampaign measures the parsing of one message.
func BenchmarkParseCampaign(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse([]byte(contractExample)); err != nil {
			b.Fatal(err.Reason)
		}
	}
}
