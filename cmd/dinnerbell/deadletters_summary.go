package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/logging"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/stream/operator"
)

// deadLettersSummary counts dead letters by the class of their reason.
type deadLettersSummary map[string]*deadLettersClass

// deadLettersClass is one line of the summary.
type deadLettersClass struct {
	Class  string    `json:"reason_class"`
	Count  int64     `json:"count"`
	First  time.Time `json:"first_refused_at"`
	Last   time.Time `json:"last_refused_at"`
	Name   string    `json:"last"`        // of the last one, as retry takes it
	Reason string    `json:"last_reason"` // of the last one
}

func (s deadLettersSummary) add(d *operator.DeadLetter) {
	class, at := string(d.Class), d.Refused.UTC()
	c := s[class]
	if c == nil {
		c = &deadLettersClass{Class: class, First: at}
		s[class] = c
	}
	c.Count++
	if at.Before(c.First) {
		c.First = at
	}
	if !at.Before(c.Last) {
		c.Last, c.Name, c.Reason = at, fmt.Sprintf("%d:%d", d.Partition, d.Offset), d.Reason
	}
}

// print writes one line for each class, the most frequent one first.
func (s deadLettersSummary) print(out io.Writer, asJSON bool) error {
	classes := slices.SortedFunc(maps.Values(s), func(a, b *deadLettersClass) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Class, b.Class))
	})
	lines := json.NewEncoder(out)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, c := range classes {
		if asJSON {
			if err := lines.Encode(c); err != nil {
				return err
			}
			continue
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\tlast %s\t%s\t%s\n", classLabel(c.Class), terminal.Thousands(c.Count), c.Last.Format(time.RFC3339), c.Name, terminal.Escape(logging.Line(c.Reason))) // Flush reports errors
	}
	return w.Flush()
}

// classLabel returns a class for people. A letter of another producer, or of an earlier
// version, has none.
func classLabel(class string) string {
	return terminal.Escape(cmp.Or(class, "unclassified"))
}
