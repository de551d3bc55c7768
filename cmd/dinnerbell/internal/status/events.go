package status

import (
	"strings"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/logging"
)

// Event is a message of the log that an operator wants to read later: a change of
// state, a halt, a takeover, an operator's command. It names no client.
type Event struct {
	Time  time.Time `json:"time"`
	Level string    `json:"level"`           // info, warn or error
	Part  string    `json:"part,omitempty"`  // source, stream or state; absent: the daemon itself
	Text  string    `json:"text"`            // one line of at most 1,000 bytes
	Times int       `json:"times,omitempty"` // how often in a row, where it was more than once; time and text are the last one's
}

// SetEvents fills in the events of a logger. They are bounded and without secrets, so
// RewriteStrings may come before.
func (r *Report) SetEvents(events []logging.Event) {
	r.Events = make([]Event, len(events))
	for i := range events {
		e := &events[i]
		r.Events[i] = Event{Time: e.Time.UTC(), Level: strings.ToLower(e.Level.String()), Part: e.Part, Text: e.Text}
		if e.Times > 1 {
			r.Events[i].Times = e.Times
		}
	}
}
