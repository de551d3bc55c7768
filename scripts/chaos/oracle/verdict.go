package oracle

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/scripts/chaos/history"
)

// The kinds of findings, by the names in the summary.
const (
	Missing    = "missing"
	Doubled    = "doubled"
	Forbidden  = "forbidden"
	Mismatched = "mismatched"
)

// Verdict is the result of comparing both sinks with the oracle.
type Verdict struct {
	Notifications int            `json:"notifications"`
	Musts         int            `json:"musts"`
	DeadLetters   int            `json:"dead_letters"`
	Counts        map[string]int `json:"counts"`
	Findings      []Finding      `json:"findings,omitempty"` // the first ones of each kind
	Problems      []string       `json:"problems,omitempty"` // exits, halts, slowness
}

// Finding is one mistake in a sink.
type Finding struct {
	Kind string `json:"kind"`
	What string `json:"what"`
	Why  string `json:"why"`
}

// maxFindings bounds the findings of each kind that are kept with their texts.
const maxFindings = 50

// NewVerdict returns a verdict without findings.
func NewVerdict() *Verdict { return &Verdict{Counts: map[string]int{}} }

// Failed reports whether there is a finding or a problem.
func (v *Verdict) Failed() bool {
	return v == nil || len(v.Problems) > 0 || v.Counts[Missing]+v.Counts[Doubled]+v.Counts[Forbidden]+v.Counts[Mismatched] > 0
}

func (v *Verdict) addFinding(kind, what, why string, args ...any) {
	v.Counts[kind]++
	if v.Counts[kind] <= maxFindings {
		v.Findings = append(v.Findings, Finding{kind, what, fmt.Sprintf(why, args...)})
	}
}

// Problemf adds a problem.
func (v *Verdict) Problemf(format string, args ...any) {
	v.Problems = append(v.Problems, fmt.Sprintf(format, args...))
}

// Sinks are the daemon's output.
type Sinks struct {
	Rows        []FeedbackRow
	Records     []*kgo.Record // of the notifications topic
	DeadLetters []*kgo.Record
}

// Check compares the sinks with the oracle.
func (v *Verdict) Check(o *Oracle, s *Sinks) {
	v.Notifications = len(s.Rows)
	notified := v.checkRows(o, s)
	v.checkRecords(s)
	for id, t := range o.mustNotify() {
		v.Musts++
		if !notified[id] {
			v.addFinding(Missing, fmt.Sprintf("%q", id), "in neither sink; subscribed to %q since before the newest message", t.Restaurant)
		}
	}
	v.checkDead(o, s.DeadLetters)
}

// checkRows judges each row and returns the notifications in the table.
func (v *Verdict) checkRows(o *Oracle, s *Sinks) map[notificationKey]bool {
	notified := make(map[notificationKey]bool, len(s.Rows))
	for i := range s.Rows {
		w := &s.Rows[i]
		id := notificationKey{w.Campaign, w.Client}
		if notified[id] {
			v.addFinding(Doubled, fmt.Sprintf("%q", id), "two feedback rows")
		}
		notified[id] = true
		if kind, why := o.judgeRow(w); kind != "" {
			v.addFinding(kind, fmt.Sprintf("row %d %q", w.ID, id), "%s: %s", why, w.recordValue())
		}
		if w.Feedback != nil {
			v.addFinding(Mismatched, fmt.Sprintf("row %d %q", w.ID, id), "feedback is %q", *w.Feedback)
		}
	}
	for _, w := range o.findSuperseded(s.Rows) {
		v.addFinding(Mismatched, fmt.Sprintf("row %d (%q, %q)", w.ID, w.Campaign, w.Client), "an older message was used after its edit: %s", w.recordValue())
	}
	for _, w := range o.findCancelled(s.Rows) {
		v.addFinding(Forbidden, fmt.Sprintf("row %d (%q, %q)", w.ID, w.Campaign, w.Client), "it was notified after its cancel had been accepted: %s", w.recordValue())
	}
	return notified
}

// checkRecords compares the topic with the table: the same notifications, the
// same bytes, the right key and partition.
func (v *Verdict) checkRecords(s *Sinks) {
	records := make(map[string][]*kgo.Record, len(s.Records))
	for _, r := range s.Records {
		records[string(r.Key)] = append(records[string(r.Key)], r)
	}
	for i := range s.Rows {
		w := &s.Rows[i]
		key := w.recordKey()
		list := records[key]
		delete(records, key)
		if len(list) == 0 {
			v.addFinding(Missing, fmt.Sprintf("row %d %s", w.ID, key), "in the feedback table, not in the topic")
			continue
		}
		if len(list) > 1 {
			v.addFinding(Doubled, key, "%d records: %s", len(list), formatPositions(list))
		}
		for _, r := range list {
			if string(r.Value) != w.recordValue() {
				v.addFinding(Mismatched, key, "the record at %s is %q, the row would be %q", formatPositions([]*kgo.Record{r}), r.Value, w.recordValue())
			}
			if want := partitionOf(key, history.Partitions); r.Partition != want {
				v.addFinding(Mismatched, key, "on partition %d instead of %d", r.Partition, want)
			}
		}
	}
	for key, list := range records {
		v.addFinding(Missing, key, "in the topic at %s, not in the feedback table", formatPositions(list))
	}
}

// checkDead checks that the dead letters hold every malformed message once and
// unchanged, and no other message.
func (v *Verdict) checkDead(o *Oracle, dead []*kgo.Record) {
	v.DeadLetters = len(dead)
	seen := map[RecordPosition]int{}
	for _, r := range dead {
		p, err := letterOrigin(r)
		m := o.malformed[p]
		what := fmt.Sprintf("dead letter at %s of message %v", formatPositions([]*kgo.Record{r}), p)
		switch seen[p]++; {
		case err != nil:
			v.addFinding(Mismatched, what, "its headers name no origin: %v", err)
		case m == nil:
			v.addFinding(Forbidden, what, "the message is a campaign: %q", r.Value)
		case seen[p] > 1:
			v.addFinding(Doubled, what, "an earlier dead letter is of the same message")
		case !bytes.Equal(m.Value, r.Value):
			v.addFinding(Mismatched, what, "its value is %q instead of %q", r.Value, m.Value)
		case Header(r, "reason") == "":
			v.addFinding(Mismatched, what, "it gives no reason")
		}
	}
	for p, m := range o.malformed {
		if seen[p] == 0 {
			v.addFinding(Missing, fmt.Sprintf("message %v", p), "malformed, and not in the dead-letter topic: %q", m.Value)
		}
	}
}

// letterOrigin reads the position of the original message from a dead letter.
func letterOrigin(r *kgo.Record) (p RecordPosition, err error) {
	partition, err := strconv.ParseInt(Header(r, "partition"), 10, 32)
	if err != nil {
		return p, fmt.Errorf("read header partition: %w", err)
	}
	p.Partition = int32(partition)
	if p.Offset, err = strconv.ParseInt(Header(r, "offset"), 10, 64); err != nil {
		return p, fmt.Errorf("read header offset: %w", err)
	}
	return p, nil
}

// Header returns the value of a record's header, "" where there is none.
func Header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

func formatPositions(list []*kgo.Record) string {
	var b bytes.Buffer
	for i, r := range list {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%d/%d", r.Partition, r.Offset)
	}
	return b.String()
}
