// Package history records what the workload and the faults of a round did, and
// when: the only input of the oracle beside the sinks.
package history

import "time"

// Partitions of the topics of campaigns and notifications.
const Partitions = 3

// Subscription is a client and a restaurant: a subscription while at least one row has it.
type Subscription struct{ Client, Restaurant string }

// RowChange is what a transaction does to one row: New is its pair, nil if the row
// is deleted.
type RowChange struct {
	Row int64         `json:"row"`
	New *Subscription `json:"new"`
}

// Transaction is one transaction of the workload. It became visible at some moment from
// Before to After; or never, if it is not Committed.
type Transaction struct {
	Number    int64         `json:"number"`
	Writer    int           `json:"writer"`
	Kind      string        `json:"kind"`
	Before    time.Duration `json:"before"`
	After     time.Duration `json:"after"`
	Committed bool          `json:"committed"`
	Doubt     bool          `json:"doubt,omitempty"` // the answer to COMMIT was lost; the database told later
	Truncate  bool          `json:"truncate,omitempty"`
	Changes   []RowChange   `json:"changes"`
}

// CampaignFields are a campaign message's, in the order of the contract.
type CampaignFields struct {
	Restaurant string `json:"restaurant_id"`
	Campaign   string `json:"adv_campaign_id"`
	Content    string `json:"adv_campaign_content"`
	Owner      string `json:"adv_campaign_owner"`
	Contact    string `json:"adv_campaign_owner_contact"`
	Start      int64  `json:"adv_campaign_datetime_start"`
	End        int64  `json:"adv_campaign_datetime_end"`
	Created    int64  `json:"datetime_created"`
}

// Message is one record that was produced, or perhaps was: what the topic holds
// in the end is what counts.
type Message struct {
	Number    int64           `json:"number"`
	Kind      string          `json:"kind"`
	Partition int32           `json:"partition"`
	Before    time.Duration   `json:"before"` // nobody had received it then
	Acked     bool            `json:"acked"`
	Offset    int64           `json:"offset"` // if acked
	Time      int64           `json:"time"`   // of the record, milliseconds; no two are the same
	Value     []byte          `json:"value"`
	Fields    *CampaignFields `json:"fields,omitempty"` // nil: malformed

	Transaction bool `json:"transaction,omitempty"` // it is sent in a transaction of its own
	Aborted     bool `json:"aborted,omitempty"`     // which is aborted: nobody may see the message
	Repeats     int  `json:"repeats,omitempty"`     // how often it is sent again at once
}

// CampaignLife is the life of campaigns that do not end while the round lasts, and
// how far ahead those start that never do.
const CampaignLife = time.Hour

// Fault is one line of the schedule.
type Fault struct {
	At        time.Duration `json:"at"`
	Kind      string        `json:"kind"`
	Length    time.Duration `json:"length,omitempty"` // of what lasts
	Daemon    int           `json:"daemon"`           // whose process, state or link
	Link      string        `json:"link,omitempty"`
	Direction string        `json:"direction,omitempty"` // half-open: which is lost
	Millis    int           `json:"millis,omitempty"`    // of a delay
	Leave     bool          `json:"leave,omitempty"`     // the group is told at once that the daemon is gone
	Draw      uint64        `json:"draw,omitempty"`      // of a damage: which file and byte
	Failed    bool          `json:"failed,omitempty"`    // of a command: what went on broke it

	Began time.Duration `json:"began,omitempty"`
	Ended time.Duration `json:"ended,omitempty"`
}
