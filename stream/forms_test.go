package stream

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/envtest/rawbatch"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/topic"
)

// rareText has every kind of character that a text may have: controls, what JSON must
// escape and what it may, combining and right-to-left characters, noncharacters, the first
// and the last of the astral planes, and an emoji of several.
const rareText = "\x01\x08\t\n\f\r\x1b\x1f \"\\/<>&' \x7f\u0080\u00a0é e\u0301 Скидка שלום 漢字 \u2028\u2029\u200b\ufeff\ufdd0\ufffd\ufffe\uffff \U00010000🍕👨\u200d👩\u200d👧\U0010ffff"

// escapeAll returns a JSON string of \u escapes only.
func escapeAll(text string) string {
	var out strings.Builder
	for _, unit := range utf16.Encode([]rune(text)) {
		fmt.Fprintf(&out, `\u%04X`, unit)
	}
	return `"` + out.String() + `"`
}

// Messages in every form that producers send reach both sinks with the same bytes: forms
// of JSON, keys, headers, codecs, transactions.
func TestMessagesInEveryFormReachBothSinks(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a", "пиццерия 🍕"}})
	contents, want := map[string]string{}, map[string][]string{}
	message := func(id, content string, edit func(string) string) []byte {
		c := w.campaign(id, "r1")
		c.Content = "@"
		contents[id], want[id] = content, w.subs["r1"]
		text := edit(string(encodeCampaign(c)))
		quoted, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		return []byte(strings.Replace(text, `"@"`, string(quoted), 1))
	}
	same := func(s string) string { return s }
	start := fmt.Sprint(w.campaign("", "").Start)
	values := [][]byte{
		message("rare", rareText, same),
		message("rare, escaped", rareText, func(s string) string { return strings.Replace(s, `"@"`, escapeAll(rareText), 1) }),
		message("empty", "", same),
		message("1 MB", strings.Repeat("0123456789", 100_000), same),
		message("mark", "x", func(s string) string { return "\ufeff" + s }),
		message("twice", "last", func(s string) string {
			return strings.Replace(s, "{", `{"adv_campaign_content":7,"adv_campaign_datetime_end":"","restaurant_id":"first",`, 1)
		}),
		message("exponent", "x", func(s string) string { return strings.Replace(s, start, start[:1]+"."+start[1:]+"e+9", 1) }),
		message("fraction", "x", func(s string) string { return strings.Replace(s, start, start+".000", 1) }),
		message("deep", "x", func(s string) string {
			return strings.Replace(s, "{", `{"deep":`+strings.Repeat(`{"":[`, 4_000)+strings.Repeat("]}", 4_000)+",", 1)
		}),
		message("pretty", "x", func(s string) string {
			var out bytes.Buffer
			_ = json.Indent(&out, []byte(s), "\t", "\r\n ") // it is JSON
			return out.String()
		}),
	}
	keys := [][]byte{nil, {}, []byte("\x00\xff"), bytes.Repeat([]byte("k"), 1000)}
	for i, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()} {
		id := fmt.Sprint("codec ", i)
		client := w.kafka.Client(kgo.ProducerBatchCompression(codec))
		r := &kgo.Record{Topic: w.cfg.Kafka.Campaigns, Key: keys[i%len(keys)], Value: message(id, strings.Repeat(id, 1000), same), Headers: []kgo.RecordHeader{{Key: "adv_campaign_id", Value: []byte("other")}, {Key: "", Value: nil}}}
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	rawbatch.Produce(t, w.kafka.Client(), w.cfg.Kafka.Campaigns, rawbatch.Snappy, 1, rawbatch.Compress(t, rawbatch.Snappy, rawbatch.Record(0, string(message("snappy of Java", "x", same)))))
	transactional := w.kafka.Client(kgo.TransactionalID(envtest.Name("forms")))
	w.produceTxn(transactional, kgo.TryCommit, message("committed", "x", same))
	w.produceTxn(transactional, kgo.TryAbort, encodeCampaign(w.campaign("aborted", "r1")))
	w.produce(0, values...)
	w.start()
	w.expect(want)

	for _, n := range w.rows() {
		if n.Content != contents[n.ID] {
			t.Errorf("%s: the table holds %.200q, want %.200q", n.ID, n.Content, contents[n.ID])
		}
	}
	for _, r := range w.kafka.ReadAll(w.cfg.Kafka.Notifications) {
		id, _, _ := strings.Cut(string(r.Key), ":")
		var quoted bytes.Buffer // as JSON must have it: no escape that is not needed
		enc := json.NewEncoder(&quoted)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(contents[id]); err != nil {
			t.Fatal(err)
		}
		if part := `"adv_campaign_content":` + strings.TrimSuffix(quoted.String(), "\n") + `,"adv_campaign_owner"`; !bytes.Contains(r.Value, []byte(part)) {
			t.Errorf("%s: the topic holds %.300s, want %.300s", id, r.Value, part)
		}
	}
}

// Messages that are no campaign leave dead letters that name field, mistake and class, with
// key, value and headers as they came, and the good one behind them arrives.
func TestRefusedMessagesNameTheMistake(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	good := string(encodeCampaign(w.campaign("c", "r1")))
	c := w.campaign("c", "r1")
	start, quoted := fmt.Sprint(c.Start), fmt.Sprintf(`"%d"`, c.Start)
	replace := func(old, with string) []byte {
		if !strings.Contains(good, old) {
			t.Fatalf("%s is not in %s", old, good)
		}
		return []byte(strings.Replace(good, old, with, 1))
	}
	cases := []struct {
		value  []byte
		class  campaign.ReasonClass
		reason string
	}{
		{nil, campaign.ClassTombstone, "tombstone"},
		{[]byte{}, campaign.ClassNotJSON, "empty"},
		{[]byte(good[:50]), campaign.ClassNotJSON, "cut off"},
		{bytes.Repeat([]byte(`[`), 1_000_000), campaign.ClassNotJSON, "nested more than 10000 levels"},
		{replace("{", `{"deep":`+strings.Repeat(`{"":`, 200_000)), campaign.ClassNotJSON, "nested more than 10000 levels"},
		{replace(start, quoted), campaign.ClassWrongType, "adv_campaign_datetime_start is not a whole number of seconds: it is the string " + quoted + "; write it without quotes"},
		{replace(start, `"2022-07-30T17:51:56Z"`), campaign.ClassWrongType, "adv_campaign_datetime_start is not a whole number of seconds: it is the string \"2022-07-30T17:51:56Z\", which is a time in ISO 8601; the number 1659203516 is expected"},
		{replace(start, start+"000"), campaign.ClassBadTime, "it looks like milliseconds: in seconds, " + start + " is 20"},
		{replace(start, start+".5"), campaign.ClassBadTime, "leave the fraction out"},
		{replace("content of c", `\ud83c`), campaign.ClassBadText, "adv_campaign_content contains half of a surrogate pair"},
		{replace("content of c", `\udf55\ud83c`), campaign.ClassBadText, "adv_campaign_content contains half of a surrogate pair"},
		{replace("content of c", "\xed\xa0\xbc"), campaign.ClassNotJSON, "not valid UTF-8"}, // a surrogate's bytes
		{replace(`"r1"`, `""`), campaign.ClassBadID, "restaurant_id is empty"},
		{replace(`"r1"`, `null`), campaign.ClassMissingField, "restaurant_id is null"},
	}
	client := w.kafka.Client(kgo.ProducerBatchMaxBytes(topic.DefaultMaxMessage))
	key, headers := []byte("\x00key"), []kgo.RecordHeader{{Key: "reason_class", Value: []byte("mine")}, {Key: "h", Value: nil}}
	for _, c := range cases {
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: w.cfg.Kafka.Campaigns, Key: key, Value: c.value, Headers: headers}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	w.produce(0, []byte(good))
	svc, _ := w.start()
	w.expect(map[string][]string{"c": {"a"}})
	letters := w.refused(len(cases))
	var counts campaign.ClassCounts
	for i, c := range cases {
		counts[slices.Index(campaign.ReasonClasses[:], c.class)]++
		d := letters[int64(i)]
		if d == nil {
			t.Errorf("no dead letter with %q", c.reason)
			continue
		}
		if d.Class != c.class || !strings.Contains(d.Reason, c.reason) || strings.Contains(d.Reason, "\n") {
			t.Errorf("class %s, reason %q, want %s and %q", d.Class, d.Reason, c.class, c.reason)
		}
		if !bytes.Equal(d.Value, c.value) || (d.Value == nil) != (c.value == nil) || !bytes.Equal(d.Key, key) || len(d.Headers) != 2 || string(d.Headers[0].Value) != "mine" || d.Headers[1].Value != nil {
			t.Errorf("%s: key %q, %d bytes, headers %v", c.reason, d.Key, len(d.Value), d.Headers)
		}
	}
	if got := svc.Status().Letters; got != counts {
		t.Errorf("counted %v, want %v", got, counts)
	}
}
