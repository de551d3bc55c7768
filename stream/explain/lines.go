package explain

import (
	"fmt"
	"strings"
	"time"
)

// lines lists all evidence, from the sinks back to the subscriptions.
func (e *Evidence) lines() []Line {
	l := lineList{list: []Line{}}
	e.addSinkLines(&l)
	for i := range e.Campaigns {
		e.addCampaignLine(&l, &e.Campaigns[i])
	}
	if e.MoreCampaigns {
		l.add(SourceCampaign, e.CampaignTable, time.Time{}, "has more restaurants of this campaign than are shown; name one with --restaurant")
	}
	for i := range e.Lanes {
		addLaneLine(&l, &e.Lanes[i])
	}
	for i := range e.Letters {
		addLetterLine(&l, &e.Letters[i])
	}
	for i := range e.Messages {
		addMessageLine(&l, &e.Messages[i])
	}
	for i := range e.Subscriptions {
		e.Subscriptions[i].addLines(&l)
	}
	return l.list
}

// lineList collects lines.
type lineList struct{ list []Line }

func (l *lineList) add(s Source, place string, t time.Time, what string) {
	line := Line{Source: s, Place: place, What: what}
	if !t.IsZero() {
		t = t.UTC()
		line.Time = &t
	}
	l.list = append(l.list, line)
}

// addSinkLines adds the row, the step and the record.
func (e *Evidence) addSinkLines(l *lineList) {
	if r := e.Feedback; r != nil {
		place := "row of " + e.FeedbackTable
		if r.ID != "" {
			place = "row " + r.ID + " of " + e.FeedbackTable
		}
		feedback := "no feedback yet"
		if r.Feedback != nil {
			feedback = "feedback " + quoteID(*r.Feedback)
		}
		l.add(SourceFeedback, place, r.Decided, "decided for restaurant "+quoteID(r.Restaurant)+"; "+feedback)
	} else if !e.isMissing(SourceFeedback) {
		l.add(SourceFeedback, e.FeedbackTable, time.Time{}, "no row of this campaign and client")
	}
	if s := e.Step; s != nil {
		what := fmt.Sprintf("has decided it; steps up to %d are shipped", s.Shipped)
		if s.Shipped < 0 {
			what = "has decided it; whether it is shipped is not known"
		}
		l.add(SourceOutbox, fmt.Sprintf("lane %d, step %d", s.Lane, s.Seq), time.Time{}, what)
	}
	switch s := e.Search; {
	case e.Record != nil:
		r := e.Record
		l.add(SourceRecord, fmt.Sprintf("%s/%d@%d", r.Topic, r.Partition, r.Offset), r.Time, "the notification, as readers of committed records see it")
	case s != nil:
		l.add(SourceRecord, fmt.Sprintf("%s/%d@%d…%d", s.Topic, s.Partition, s.From, s.To), time.Time{}, fmt.Sprintf("no record of this key at these offsets; the partition ends at %d", s.End))
	}
}

func (e *Evidence) addCampaignLine(l *lineList, r *CampaignRow) {
	phase := r.State
	if phase == stateFinished && r.isCutOff() {
		phase = "ended before everybody was notified"
	}
	what := fmt.Sprintf("restaurant %s: %s, valid %s to %s, version %d by the message at %d@%d, accepted %s, lane %d, %d notified",
		quoteID(r.Restaurant), phase, formatTime(r.Start), formatTime(r.End), r.Version, r.MessageOn, r.MessageAt, formatTime(r.Accepted), r.Lane, r.Notified)
	if r.Audience != nil {
		what += fmt.Sprintf(" of %d", *r.Audience)
	}
	if !r.Started.IsZero() {
		what += ", started " + formatTime(r.Started)
	}
	if !r.Finished.IsZero() {
		what += ", finished " + formatTime(r.Finished)
	}
	if r.Cursor != "" && r.State != stateFinished {
		what += ", position " + quoteID(r.Cursor.Text())
	}
	if r.Command != "" {
		what += ", " + r.Command + at(r.Commanded)
	}
	l.add(SourceCampaign, "row of "+e.CampaignTable, r.Sent, what)
}

func addLaneLine(l *lineList, n *Lane) {
	shipped := fmt.Sprintf("up to step %d is shipped", n.Shipped)
	switch o := n.Owner; {
	case o != nil && o.Shipped > n.Shipped && o.Shipped <= n.Decided: // the row follows with the next step
		shipped = fmt.Sprintf("up to step %d is shipped", o.Shipped)
	case n.Shipped < n.Decided:
		shipped = fmt.Sprintf("at least up to step %d is shipped", n.Shipped)
	}
	what := fmt.Sprintf("step %d is decided, %s, reads on at offset %d", n.Decided, shipped, n.NextOffset)
	if o := n.Owner; o != nil {
		what += "; " + o.State
		if o.Waiting {
			what += ", waits for fresh subscriptions"
		}
		if o.Held != "" {
			what += ": " + o.Held
		}
		if o.LastError != "" {
			what += ": " + o.LastError
		}
	}
	l.add(SourceLane, fmt.Sprintf("lane %d", n.Lane), time.Time{}, what)
}

func addLetterLine(l *lineList, d *Letter) {
	what := "the message " + d.origin() + " was refused: " + d.Reason
	switch {
	case d.LeftOut && d.NamesClient:
		what = "names the client: " + d.Reason
	case d.LeftOut:
		what = d.Reason + " (the client is not among those it names)"
	case d.Guessed:
		what += " (it is not JSON; it holds the campaign's id)"
	}
	l.add(SourceDeadLetter, fmt.Sprintf("%s/%d@%d", d.Topic, d.Partition, d.Offset), d.Time, what)
}

func addMessageLine(l *lineList, m *Message) {
	var what []string
	if m.Restaurant != "" {
		what = append(what, "restaurant "+quoteID(m.Restaurant))
	}
	if !m.End.IsZero() {
		what = append(what, "valid "+formatTime(m.Start)+" to "+formatTime(m.End))
	}
	if m.Invalid != "" {
		what = append(what, "invalid: "+m.Invalid)
	}
	if m.Unread {
		what = append(what, "not read yet")
	} else {
		what = append(what, "the lane has passed it")
	}
	l.add(SourceMessage, fmt.Sprintf("%s/%d@%d", m.Topic, m.Partition, m.Offset), m.Time, strings.Join(what, ", "))
}

// addLines adds the subscription as of now, and the history.
func (s *Subscription) addLines(l *lineList) {
	what := "not subscribed to restaurant " + quoteID(s.Restaurant)
	if s.Subscribed {
		what = "subscribed to restaurant " + quoteID(s.Restaurant)
		if len(s.Rows) > 0 {
			what += " (row " + strings.Join(s.Rows, ", ") + ")"
		}
	}
	if s.Similar != "" {
		what += "; the client " + quoteID(s.Similar) + " is: ids are compared byte by byte"
	}
	if s.From == SourceTable {
		l.add(SourceTable, s.Table, time.Time{}, what+" now")
		return
	}
	l.add(SourceState, "local state at "+s.LSN, time.Time{}, what)
	for _, c := range s.History {
		word := "a row of the subscription appeared"
		if c.Gone {
			word = "a row of the subscription went"
		}
		l.add(SourceHistory, "commit at "+c.LSN, c.Time, word+" (restaurant "+quoteID(s.Restaurant)+")")
	}
	if s.Since.IsZero() {
		l.add(SourceHistory, "local history", time.Time{}, "does not reach back (restaurant "+quoteID(s.Restaurant)+")")
	} else {
		l.add(SourceHistory, "local history from "+s.Floor, s.Since, "reaches back to here (restaurant "+quoteID(s.Restaurant)+")")
	}
}
