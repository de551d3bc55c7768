// Package history records the transactions, messages and faults of a round with
// their times. Beside the sinks, the history is the oracle's only input.
package history

import "time"

// Partitions is how many partitions the topics of campaigns and notifications
// have.
const Partitions = 3

// Subscription is a client and a restaurant. The client is subscribed while at
// least one row holds the two.
type Subscription struct{ Client, Restaurant string }

// RowChange is the effect of a transaction on one row. New is the row's new
// content, nil if the row is deleted.
type RowChange struct {
	Row int64         `json:"row"`
	New *Subscription `json:"new"`
}

// Transaction is one transaction of the workload. If Committed, it became
// visible at some moment from Before to After, and otherwise never.
type Transaction struct {
	Number    int64         `json:"number"`
	Writer    int           `json:"writer"`
	Kind      string        `json:"kind"`
	Before    time.Duration `json:"before"`
	After     time.Duration `json:"after"`
	Committed bool          `json:"committed"`
	Doubt     bool          `json:"doubt,omitempty"` // the answer to COMMIT was lost and the writer asked later
	Truncate  bool          `json:"truncate,omitempty"`
	Changes   []RowChange   `json:"changes"`
}

// CampaignFields are the fields of a campaign message in the order of the
// contract.
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

// Message is one message that was produced. Without an acknowledgement it may
// be in the topic or not; only the topic decides.
type Message struct {
	Number    int64           `json:"number"`
	Kind      string          `json:"kind"`
	Partition int32           `json:"partition"`
	Before    time.Duration   `json:"before"` // no daemon had received the message by then
	Acked     bool            `json:"acked"`
	Offset    int64           `json:"offset"` // if acked
	Time      int64           `json:"time"`   // record time in milliseconds, different for each message
	Value     []byte          `json:"value"`
	Fields    *CampaignFields `json:"fields,omitempty"` // nil for a malformed message

	Transaction bool `json:"transaction,omitempty"` // the producer sends the message in a transaction
	Aborted     bool `json:"aborted,omitempty"`     // the producer aborts that transaction, so no consumer may see the message
	Repeats     int  `json:"repeats,omitempty"`     // how often the producer sends the message again at once
}

// CampaignLife returns how long a campaign lasts that does not end during a round of
// this length, and half of how far ahead a campaign starts that never starts during the
// round. Half of the life is left when the round ends.
func CampaignLife(round time.Duration) time.Duration { return time.Hour + 2*round }

// Fault is one entry of the schedule.
type Fault struct {
	At        time.Duration `json:"at"`
	Kind      string        `json:"kind"`
	Length    time.Duration `json:"length,omitempty"` // of a fault that lasts
	Daemon    int           `json:"daemon"`           // the daemon whose process, state or link is hit
	Link      string        `json:"link,omitempty"`
	Direction string        `json:"direction,omitempty"` // of a half-open link: the direction that loses its bytes
	Millis    int           `json:"millis,omitempty"`    // of a delay
	Leave     bool          `json:"leave,omitempty"`     // the group learns at once that the daemon is gone
	Draw      uint64        `json:"draw,omitempty"`      // of a damage: selects file and byte
	Failed    bool          `json:"failed,omitempty"`    // of a command: another fault made it fail

	Began time.Duration `json:"began,omitempty"`
	Ended time.Duration `json:"ended,omitempty"`
}
