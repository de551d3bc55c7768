// Package explain tells why a client got a campaign, or did not get it. It is pure: from
// evidence that others have gathered it finds one verdict (Explain).
package explain

import (
	"slices"
	"time"

	"dinnerbell/state/id"
)

// Question is what somebody wants to know.
type Question struct {
	Campaign   string
	Client     string
	Restaurant string // "": any restaurant of the campaign
}

// Evidence holds everything that was found about a question. A part that could not be
// read is empty and has a Gap.
type Evidence struct {
	Question

	Now             time.Time
	LateSubscribers bool   // join.late_subscribers
	Start           string // kafka.start

	// Misfit is the reason why the sinks can carry no row and no record of the client;
	// "" if they can.
	Misfit string

	FeedbackTable string // its name
	Feedback      *FeedbackRow
	Step          *Step         // that decided the notification, while the outbox holds it
	Record        *Record       // of the notifications topic
	Search        *RecordSearch // nil: nobody looked for the record

	CampaignTable string // its name
	Campaigns     []CampaignRow
	MoreCampaigns bool // the table has more restaurants of the campaign than were read
	Lanes         []Lane
	// NoLanes is the error that keeps the daemon that answers from owning any lane; "" where
	// it owns some or others have them all, and where no daemon answers.
	NoLanes string

	Letters  []Letter // newest first
	Messages []Message

	Subscriptions []Subscription // one for each restaurant that was asked for

	Gaps []Gap
}

// Source names the place that a piece of evidence comes from.
type Source string

// The sources.
const (
	SourceFeedback   Source = "feedback"     // the feedback table
	SourceOutbox     Source = "outbox"       // the decided steps of the lanes
	SourceCampaign   Source = "campaign"     // the campaign table
	SourceLane       Source = "lane"         // the lane's row, and the daemon's view of the lane
	SourceRecord     Source = "record"       // the notifications topic
	SourceDeadLetter Source = "dead_letter"  // the dead-letter topic
	SourceMessage    Source = "message"      // the campaigns topic
	SourceState      Source = "state"        // the daemon's local subscriptions
	SourceHistory    Source = "history"      // the daemon's local history of subscriptions
	SourceTable      Source = "source_table" // the table of the subscriptions
)

// Gap is something that is not known.
type Gap struct {
	Source Source `json:"source"`
	What   string `json:"what"` // what is not known, and why
	Tell   string `json:"tell"` // the command or the log that would tell
	// Cause is why the source could not be read, in short; "" where it was read as far as
	// the bounds of the search allow.
	Cause string `json:"-"`
}

// FeedbackRow is the client's row of the campaign in the feedback table.
type FeedbackRow struct {
	ID         string // "" where the table has no column of that name
	Restaurant string
	Decided    time.Time
	Feedback   *string // nil: none came in
}

// Step is the step that decided the notification, as its outbox row has it.
type Step struct {
	Lane int32
	Seq  int64
	// Shipped is the lane's K; negative if it could not be read.
	Shipped int64
}

// Record is a record of the notifications topic that readers of committed records see.
type Record struct {
	Topic     string
	Partition int32
	Offset    int64
	Time      time.Time
}

// RecordSearch holds the bounds of a search for the record.
type RecordSearch struct {
	Topic     string
	Partition int32
	From, To  int64 // the offsets that were read: [From, To)
	End       int64 // of the partition
	Partial   bool  // the search ended at its bounds, and not at the end of the partition
}

// CampaignRow is a row of the campaign table.
type CampaignRow struct {
	Refusal    string // why the feedback table takes no row of it; "": it does
	Restaurant string
	Lane       int32
	Version    int64
	MessageAt  int64 // offset of the newest message, on partition MessageOn
	MessageOn  int32
	Sent       time.Time // the newest message, as Kafka stamped it
	Start, End time.Time
	State      string
	Cursor     id.ID
	Accepted   time.Time
	Audience   *int64 // nil: not counted
	Notified   int64
	Approved   bool
	Command    string    // an operator's last command, and who gave it; "": none
	Commanded  time.Time // when; zero: never
	Started    time.Time // zero: no step has served it, or its time is not known
	Finished   time.Time // the same
}

// Lane is a lane's row, with what the running daemon says about the lane.
type Lane struct {
	Lane       int32
	Decided    int64
	Shipped    int64
	NextOffset int64
	// Owner is the daemon's view of a lane that it owns; nil where no daemon answers or
	// another one owns the lane.
	Owner *Owner
}

// Owner is a daemon's view of a lane of its own.
type Owner struct {
	State     string
	LastError string
	Shipped   int64
	Waiting   bool   // for fresh subscriptions
	Held      string // the transaction of another producer that holds the lane up
}

// Letter is a dead letter that concerns the campaign.
type Letter struct {
	Topic      string // the dead-letter topic
	Partition  int32
	Offset     int64
	Time       time.Time // of the message
	Refused    time.Time // as Kafka stamped the letter
	From       string    // the topic of the message, its partition and offset there; "" if not known
	FromLane   int32
	FromAt     int64
	Reason     string
	Restaurant string // "": the message does not tell
	// LeftOut: the letter refuses no message and names clients who were left out.
	LeftOut     bool
	NamesClient bool // the client is among them
	// Invalid: the message is no valid campaign, and would be refused again.
	Invalid bool
	// Guessed: the message is no JSON that could be read, and only holds the id.
	Guessed bool
}

// Message is a message of the campaigns topic that has the campaign's id.
type Message struct {
	Topic      string
	Partition  int32
	Offset     int64
	Time       time.Time
	Restaurant string
	Start, End time.Time
	Invalid    string // why it will be refused; "" for a valid message
	Unread     bool   // the lane has not read it yet
}

// Subscription says whether the client is subscribed to a restaurant.
type Subscription struct {
	Restaurant string `json:"restaurant"`
	// From is SourceState or SourceTable.
	From       Source   `json:"from"`
	LSN        string   `json:"lsn,omitempty"`   // of the local state
	Table      string   `json:"table,omitempty"` // the name of the table
	Subscribed bool     `json:"subscribed"`
	Rows       []string `json:"rows,omitempty"`    // ids of its rows, some of them
	Similar    string   `json:"similar,omitempty"` // another spelling of the client's id that is subscribed

	// History has the changes that are known, newest first. It is complete from Since on;
	// Since is zero where there is no history.
	History []Change  `json:"history,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	Floor   string    `json:"floor,omitempty"` // the position that it reaches back to
}

// Change is an entry of the history.
type Change struct {
	Gone bool      `json:"gone"` // a row of the subscription went; otherwise it appeared
	LSN  string    `json:"lsn"`  // of the commit
	Time time.Time `json:"time"` // of the commit
}

// isMissing reports whether a source could not be read.
func (e *Evidence) isMissing(s Source) bool {
	return slices.ContainsFunc(e.Gaps, func(g Gap) bool { return g.Source == s })
}

// whyUnread returns why a source could not be read; "" if it was.
func (e *Evidence) whyUnread(s Source) string {
	for i := range e.Gaps {
		if g := &e.Gaps[i]; g.Source == s && g.Cause != "" {
			return g.Cause
		}
	}
	return ""
}

// subscription returns what is known of a restaurant; nil if nothing is.
func (e *Evidence) subscription(restaurant string) *Subscription {
	for i := range e.Subscriptions {
		if e.Subscriptions[i].Restaurant == restaurant {
			return &e.Subscriptions[i]
		}
	}
	return nil
}

// lane returns a lane; nil if it is not known.
func (e *Evidence) lane(n int32) *Lane {
	for i := range e.Lanes {
		if e.Lanes[i].Lane == n {
			return &e.Lanes[i]
		}
	}
	return nil
}

// Restaurants returns the restaurants whose subscriptions matter, each once.
func (e *Evidence) Restaurants() []string {
	var out []string
	add := func(r string) {
		if r != "" && (e.Restaurant == "" || r == e.Restaurant) && !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	add(e.Restaurant)
	for i := range e.Campaigns {
		add(e.Campaigns[i].Restaurant)
	}
	for i := range e.Messages {
		add(e.Messages[i].Restaurant)
	}
	for i := range e.Letters {
		add(e.Letters[i].Restaurant)
	}
	return out
}
