package explain

import "time"

// answer is yes, no, or not known.
type answer int

const (
	unsure answer = iota
	yes
	no
)

func answerOf(b bool) answer {
	if b {
		return yes
	}
	return no
}

// presence is what is known about a subscription between two moments.
type presence struct {
	before   answer    // subscribed at the first moment
	after    answer    // subscribed at the second moment
	appeared time.Time // the first appearance between the moments; zero: none is known
	gone     time.Time // the last row that went between them
}

// between follows the subscription from one moment to a later one. It reads the history
// backwards from the present. An entry "appeared" may be there twice, and the entry
// "gone" may be of one of two rows of the client.
func (s *Subscription) between(from, to time.Time) presence {
	p := presence{before: s.at(from), after: s.at(to)}
	for _, c := range s.History { // newest first
		if !c.Time.After(from) || c.Time.After(to) {
			continue
		}
		if c.Gone && p.gone.IsZero() {
			p.gone = c.Time
		} else if !c.Gone {
			p.appeared = c.Time
		}
	}
	return p
}

// at answers whether the client was subscribed at a moment.
func (s *Subscription) at(t time.Time) answer {
	var next *Change // the first change behind the moment
	for i := range s.History {
		c := &s.History[i]
		if c.Time.After(t) {
			next = c
			continue
		}
		if !c.Gone {
			return yes
		}
		break // a row went: the changes behind it say whether there was another row
	}
	switch {
	case next != nil && next.Gone:
		return yes // the row that went later was there
	case s.Since.IsZero() || t.Before(s.Since):
		return unsure
	case next != nil:
		return no
	}
	return answerOf(s.Subscribed)
}

// subscribedAfter returns the first appearance behind a moment; zero if none is known.
func (s *Subscription) subscribedAfter(t time.Time) (first time.Time) {
	for _, c := range s.History {
		if !c.Gone && c.Time.After(t) {
			first = c.Time
		}
	}
	return first
}

// goneBefore returns when the last row went at or before a moment; zero if none is known.
func (s *Subscription) goneBefore(t time.Time) time.Time {
	for _, c := range s.History {
		if c.Gone && !c.Time.After(t) {
			return c.Time
		}
	}
	return time.Time{}
}
