// Package workload makes up the input of tests, the demo and the benchmark:
// campaign messages, and a population of restaurants and clients.
package workload

import (
	"encoding/json"
	"time"
)

// Campaign is one message of the campaigns topic, with its fields in the order
// of the contract.
type Campaign struct {
	Restaurant string `json:"restaurant_id"`
	ID         string `json:"adv_campaign_id"`
	Content    string `json:"adv_campaign_content"`
	Owner      string `json:"adv_campaign_owner"`
	Contact    string `json:"adv_campaign_owner_contact"`
	Start      int64  `json:"adv_campaign_datetime_start"` // Unix seconds, inclusive
	End        int64  `json:"adv_campaign_datetime_end"`   // Unix seconds, exclusive
	Created    int64  `json:"datetime_created"`            // Unix seconds
}

// NewCampaign returns a campaign that is valid from start until start + life. Its
// texts are those of the contract's example.
func NewCampaign(id, restaurant string, start time.Time, life time.Duration) Campaign {
	return Campaign{
		Restaurant: restaurant, ID: id,
		Content: "first campaign", Owner: "Ivanov Ivan Ivanovich", Contact: "iiivanov@restaurant.ru",
		Start: start.Unix(), End: start.Add(life).Unix(), Created: start.Unix(),
	}
}

// JSON renders the message.
func (c *Campaign) JSON() []byte {
	text, _ := json.Marshal(c) //nolint:errchkjson // strings and integers always encode
	return text
}

// Notification is the value of one record of the notifications topic, and one row
// of the feedback table. json.Marshal gives the bytes that the contract asks for.
type Notification struct {
	Restaurant string `json:"restaurant_id"`
	Campaign   string `json:"adv_campaign_id"`
	Content    string `json:"adv_campaign_content"`
	Owner      string `json:"adv_campaign_owner"`
	Contact    string `json:"adv_campaign_owner_contact"`
	Start      int64  `json:"adv_campaign_datetime_start"`
	End        int64  `json:"adv_campaign_datetime_end"`
	Client     string `json:"client_id"`
	Created    int64  `json:"datetime_created"`
	Trigger    int64  `json:"trigger_datetime_created"` // Unix second of the decision
}
