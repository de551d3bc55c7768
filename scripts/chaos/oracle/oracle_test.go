package oracle

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/scripts/chaos/history"
)

const ms = time.Millisecond

var ann = history.Subscription{Client: "ann", Restaurant: "diner"}

// singleChange returns a transaction with one change that became visible from
// before to after.
func singleChange(before, after time.Duration, row int64, p *history.Subscription) *history.Transaction {
	return &history.Transaction{Before: before, After: after, Committed: true, Changes: []history.RowChange{{Row: row, New: p}}}
}

func TestTimelines(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		start      map[int64]history.Subscription
		txns       []*history.Transaction
		throughout bool // from 100 ms on
		sometime   bool // between 100 and 200 ms
	}{
		"never":               {},
		"always":              {start: map[int64]history.Subscription{1: ann}, throughout: true, sometime: true},
		"since before":        {txns: []*history.Transaction{singleChange(90*ms, 100*ms, 1, &ann)}, throughout: true, sometime: true},
		"perhaps before":      {txns: []*history.Transaction{singleChange(90*ms, 101*ms, 1, &ann)}, sometime: true},
		"afterwards":          {txns: []*history.Transaction{singleChange(201*ms, 202*ms, 1, &ann)}},
		"during":              {txns: []*history.Transaction{singleChange(150*ms, 151*ms, 1, &ann)}, sometime: true},
		"gone before":         {start: map[int64]history.Subscription{1: ann}, txns: []*history.Transaction{singleChange(90*ms, 100*ms, 1, nil)}},
		"perhaps gone before": {start: map[int64]history.Subscription{1: ann}, txns: []*history.Transaction{singleChange(90*ms, 101*ms, 1, nil)}, sometime: true},
		"gone long after":     {start: map[int64]history.Subscription{1: ann}, txns: []*history.Transaction{singleChange(900*ms, 901*ms, 1, nil)}, sometime: true},
		"one of two rows":     {start: map[int64]history.Subscription{1: ann, 2: ann}, txns: []*history.Transaction{singleChange(150*ms, 151*ms, 1, nil)}, throughout: true, sometime: true},
		"not committed":       {txns: []*history.Transaction{{Before: 1, After: 2, Changes: []history.RowChange{{Row: 1, New: &ann}}}}},
		"another row at once": {start: map[int64]history.Subscription{1: ann}, txns: []*history.Transaction{{Before: 150 * ms, After: 151 * ms, Committed: true, Changes: []history.RowChange{{Row: 1, New: nil}, {Row: 2, New: &ann}}}}, throughout: true, sometime: true},
		"truncated":           {start: map[int64]history.Subscription{1: ann}, txns: []*history.Transaction{{Before: 50 * ms, After: 51 * ms, Committed: true, Truncate: true}}},
		"truncated, put back": {start: map[int64]history.Subscription{1: ann}, txns: []*history.Transaction{{Before: 150 * ms, After: 151 * ms, Committed: true, Truncate: true, Changes: []history.RowChange{{Row: 9, New: &ann}}}}, throughout: true, sometime: true},
		"gone in between":     {start: map[int64]history.Subscription{1: ann}, txns: []*history.Transaction{singleChange(150*ms, 151*ms, 1, nil), singleChange(160*ms, 161*ms, 1, &ann)}, sometime: true},
	} {
		lines := NewTimelines(c.start, c.txns)
		if got := lines.certainlySince(ann, 100*ms); got != c.throughout {
			t.Errorf("%s: throughout is %v", name, got)
		}
		if got := lines.possiblyWithin(ann, 100*ms, 200*ms); got != c.sometime {
			t.Errorf("%s: sometime is %v", name, got)
		}
	}
}

// correctRun returns one campaign for two clients without any fault.
func correctRun() (*Oracle, *Sinks) {
	h := &history.Log{Began: time.Unix(1000, 0), Life: time.Hour}
	o := NewOracle(h, NewTimelines(map[int64]history.Subscription{1: ann, 2: {Client: "bob", Restaurant: "diner"}}, nil), 20*time.Second)
	f := history.CampaignFields{Restaurant: "diner", Campaign: "c:1", Content: "a\"b", Start: 990, End: 9000, Created: 1}
	o.AddMessage(&history.Message{Number: 1, Before: time.Second, Fields: &f}, RecordPosition{0, 0})
	o.AddMessage(&history.Message{Number: 2, Value: []byte("bad")}, RecordPosition{0, 1})
	o.Seal()
	s := &Sinks{DeadLetters: []*kgo.Record{newLetter("bad", 1)}}
	for i, client := range []string{"ann", "bob"} {
		w := FeedbackRow{ID: int64(i), CampaignFields: f, Client: client, Trigger: 1002}
		s.Rows = append(s.Rows, w)
		s.Records = append(s.Records, &kgo.Record{Key: []byte(w.recordKey()), Value: []byte(w.recordValue()), Partition: partitionOf(w.recordKey(), history.Partitions)})
	}
	return o, s
}

func newLetter(value string, offset int) *kgo.Record {
	return &kgo.Record{Value: []byte(value), Headers: []kgo.RecordHeader{
		{Key: "partition", Value: []byte("0")}, {Key: "offset", Value: fmt.Append(nil, offset)}, {Key: "reason", Value: []byte("r")},
	}}
}

// Every kind of mistake is found under its name.
func TestVerdict(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(*Oracle, *Sinks)
		want  string
	}{
		"nothing":             {func(*Oracle, *Sinks) {}, ""},
		"in neither sink":     {func(_ *Oracle, s *Sinks) { s.Rows, s.Records = s.Rows[:1], s.Records[:1] }, Missing},
		"not in the topic":    {func(_ *Oracle, s *Sinks) { s.Records = s.Records[:1] }, Missing},
		"not in the table":    {func(_ *Oracle, s *Sinks) { s.Rows = s.Rows[:1] }, Missing},
		"two records":         {func(_ *Oracle, s *Sinks) { s.Records = append(s.Records, s.Records[0]) }, Doubled},
		"two rows":            {func(_ *Oracle, s *Sinks) { s.Rows = append(s.Rows, s.Rows[0]) }, Doubled},
		"another value":       {func(_ *Oracle, s *Sinks) { s.Records[0].Value = []byte("{}") }, Mismatched},
		"another partition":   {func(_ *Oracle, s *Sinks) { s.Records[0].Partition++ }, Mismatched},
		"no such fields":      {func(_ *Oracle, s *Sinks) { s.Rows[0].Owner = "x" }, Mismatched},
		"feedback filled in":  {func(_ *Oracle, s *Sinks) { s.Rows[0].Feedback = &s.Rows[0].Owner }, Mismatched},
		"another restaurant":  {func(_ *Oracle, s *Sinks) { s.Rows[0].Restaurant = "x" }, Forbidden},
		"not subscribed":      {func(o *Oracle, _ *Sinks) { delete(o.lines, ann) }, Forbidden},
		"decided too early":   {func(_ *Oracle, s *Sinks) { s.Rows[0].Trigger = 999 }, Forbidden},
		"decided at the end":  {func(_ *Oracle, s *Sinks) { s.Rows[0].Trigger = 9000 }, Forbidden},
		"no dead letter":      {func(_ *Oracle, s *Sinks) { s.DeadLetters = nil }, Missing},
		"two dead letters":    {func(_ *Oracle, s *Sinks) { s.DeadLetters = append(s.DeadLetters, s.DeadLetters[0]) }, Doubled},
		"a good dead letter":  {func(_ *Oracle, s *Sinks) { s.DeadLetters = append(s.DeadLetters, newLetter("x", 0)) }, Forbidden},
		"another dead letter": {func(_ *Oracle, s *Sinks) { s.DeadLetters[0].Value = nil }, Mismatched},
	} {
		o, s := correctRun()
		c.spoil(o, s)
		v := NewVerdict()
		v.Check(o, s)
		if c.want == "" && v.Failed() || c.want != "" && v.Counts[c.want] == 0 {
			t.Errorf("%s: %+v, want %q", name, v, c.want)
		}
	}
}

// A client who subscribed after the campaign must have it with late subscribers alone.
func TestLateSubscriber(t *testing.T) {
	t.Parallel()
	for late, want := range map[time.Duration]bool{0: false, 5 * time.Second: true} {
		o, s := correctRun()
		o.lines[history.Subscription{Client: "eve", Restaurant: "diner"}] = []stateChange{{3 * time.Second, 4 * time.Second, true}}
		o.ExpectLate(late)
		v := NewVerdict()
		v.Check(o, s)
		if missed := v.Counts[Missing] > 0; missed != want {
			t.Errorf("late %s: %+v", late, v)
		}
	}
}

// After an edit, a notification with the older text is a mistake.
func TestSuperseded(t *testing.T) {
	t.Parallel()
	o, s := correctRun()
	edit := s.Rows[0].CampaignFields
	edit.Content = "edited"
	o.AddMessage(&history.Message{Number: 3, Before: time.Second, Fields: &edit}, RecordPosition{0, 2})
	o.Seal()
	s.Rows[0].CampaignFields = edit
	if got := o.findSuperseded(s.Rows); len(got) != 1 || got[0].Client != "bob" {
		t.Errorf("superseded are %v", got)
	}
	slices.Reverse(s.Rows)
	if got := o.findSuperseded(s.Rows); len(got) != 0 {
		t.Errorf("superseded are %v", got)
	}
}

// Once a message behind a cancel has notified a client, the cancelled campaign
// may notify nobody.
func TestCancelled(t *testing.T) {
	t.Parallel()
	o, s := correctRun()
	cancel := s.Rows[0].CampaignFields
	cancel.End = cancel.Start + 1
	o.AddMessage(&history.Message{Number: 3, Before: 2 * time.Second, Fields: &cancel}, RecordPosition{0, 2})
	behind := history.CampaignFields{Restaurant: "diner", Campaign: "next", Start: 990, End: 9000}
	o.AddMessage(&history.Message{Number: 4, Before: 3 * time.Second, Fields: &behind}, RecordPosition{0, 3})
	elsewhere := behind
	elsewhere.Campaign = "elsewhere"
	o.AddMessage(&history.Message{Number: 5, Before: 3 * time.Second, Fields: &elsewhere}, RecordPosition{1, 9})
	o.Seal()
	ann, bob := s.Rows[0], s.Rows[1]
	next, other := FeedbackRow{CampaignFields: behind, Client: "ann"}, FeedbackRow{CampaignFields: elsewhere, Client: "ann"}
	for name, c := range map[string]struct {
		rows []FeedbackRow
		want int
	}{
		"before":              {[]FeedbackRow{ann, bob, next}, 0},
		"one after":           {[]FeedbackRow{ann, next, bob}, 1},
		"both after":          {[]FeedbackRow{next, ann, bob}, 2},
		"another partition's": {[]FeedbackRow{other, ann, bob}, 0},
	} {
		if got := o.findCancelled(c.rows); len(got) != c.want {
			t.Errorf("%s: %d rows after the cancel, want %d", name, len(got), c.want)
		}
	}
	// Revived: the newest message is no longer a cancel.
	o, s = correctRun()
	again := s.Rows[0].CampaignFields
	again.Content = "again"
	o.AddMessage(&history.Message{Number: 3, Before: 2 * time.Second, Fields: &cancel}, RecordPosition{0, 2})
	o.AddMessage(&history.Message{Number: 4, Before: 3 * time.Second, Fields: &behind}, RecordPosition{0, 3})
	o.AddMessage(&history.Message{Number: 5, Before: 4 * time.Second, Fields: &again}, RecordPosition{0, 4})
	o.Seal()
	if got := o.findCancelled([]FeedbackRow{next, ann, bob}); len(got) != 0 {
		t.Errorf("back to life: %d rows", len(got))
	}
}

func TestMurmur2(t *testing.T) {
	t.Parallel()
	// From UtilsTest.testMurmur2 of Apache Kafka.
	for key, want := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	} {
		if got := int32(murmur2Hash([]byte(key))); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", key, got, want)
		}
	}
}
