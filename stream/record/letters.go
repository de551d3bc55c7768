package record

import (
	"encoding/json"
	"strconv"

	"dinnerbell/stream/campaign"
)

// LetterMaker makes the dead letters of campaigns that were accepted. Their values are
// made from the campaign, since the message itself is not kept.
type LetterMaker struct {
	Topic string // of the campaigns
	Limit int    // bytes that the dead-letter topic accepts per batch
}

// Headers of letters that are made here; letters of refused messages do not have them.
const (
	headerReconstructed = "reconstructed" // the value was made from the campaign
	headerLeftOut       = "clients"       // how many clients were left out; the value names them
)

// RefusedCampaign returns the dead letter of a campaign that the feedback table cannot
// hold, or whose rows it refused.
func (m *LetterMaker) RefusedCampaign(c *campaign.Campaign, from campaign.Position, reason string) DeadLetter {
	value, err := json.Marshal(struct {
		RestaurantID string `json:"restaurant_id"`
		ID           string `json:"adv_campaign_id"`
		Content      string `json:"adv_campaign_content"`
		Owner        string `json:"adv_campaign_owner"`
		OwnerContact string `json:"adv_campaign_owner_contact"`
		Start        int64  `json:"adv_campaign_datetime_start"`
		End          int64  `json:"adv_campaign_datetime_end"`
		Created      int64  `json:"datetime_created"`
	}{c.RestaurantID, c.ID, c.Content, c.Owner, c.OwnerContact, c.Start, c.End, c.Created})
	if err != nil {
		value = []byte(c.ID) // cannot happen: strings and numbers always encode
	}
	return m.newLetter(DeadLetter{
		Timestamp: c.Created * 1000, Reason: reason, Class: campaign.ClassTable, Campaign: c.Key(), Value: value, Headers: []Header{{Key: headerReconstructed, Value: []byte("true")}},
	}, from)
}

// leftOutBytes bounds the bytes of the ids that one letter names.
const leftOutBytes = 64 << 10

// LeftOutClients returns the dead letter that names clients who did not get a campaign.
func (m *LetterMaker) LeftOutClients(c *campaign.Campaign, from campaign.Position, reason string, clients []string) DeadLetter {
	named, size := len(clients), 0
	for i, id := range clients {
		if size += len(id) + 3; size > leftOutBytes && i > 0 {
			named = i
			break
		}
	}
	value, err := json.Marshal(struct {
		ID           string   `json:"adv_campaign_id"`
		RestaurantID string   `json:"restaurant_id"`
		LeftOut      int      `json:"left_out"`
		Clients      []string `json:"client_ids"`
	}{c.ID, c.RestaurantID, len(clients), clients[:named]})
	if err != nil {
		value = []byte(c.ID) // cannot happen: strings and numbers always encode
	}
	n := len(clients)
	return m.newLetter(DeadLetter{
		Timestamp: c.Created * 1000, Reason: strconv.Itoa(n) + " clients are left out: " + reason, Class: campaign.ClassClients, Campaign: c.Key(), Clients: int64(n),
		Value: value, Headers: []Header{{Key: headerLeftOut, Value: strconv.AppendInt(nil, int64(n), 10)}},
	}, from)
}

// newLetter completes a letter so that it can be sent.
func (m *LetterMaker) newLetter(d DeadLetter, from campaign.Position) DeadLetter {
	d.Topic, d.Partition, d.Offset = m.Topic, from.Lane, from.Offset
	d.Fit(m.Limit, len(d.Value), false)
	return d
}
