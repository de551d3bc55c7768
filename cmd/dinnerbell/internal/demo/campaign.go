package demo

import (
	"encoding/json"
	"fmt"
	"time"
)

// campaign is one input message.
type campaign struct {
	Restaurant string `json:"restaurant_id"`
	ID         string `json:"adv_campaign_id"`
	Content    string `json:"adv_campaign_content"`
	Owner      string `json:"adv_campaign_owner"`
	Contact    string `json:"adv_campaign_owner_contact"`
	Start      int64  `json:"adv_campaign_datetime_start"` // Unix seconds, inclusive
	End        int64  `json:"adv_campaign_datetime_end"`   // exclusive
	Created    int64  `json:"datetime_created"`
}

// offers are what campaigns are about, in the order in which they come.
var offers = []string{
	"Two pizzas for one", "Ramen after ten", "Free delivery tonight", "Kids eat free",
	"Dumpling hour", "Third taco on us", "Half-price lasagne", "Soup of the day",
	"Chef's table", "Curry at cost", "Sushi happy hour", "Breakfast all day",
	"Sunday roast", "Falafel friday", "Cake with coffee", "Burger and a shake",
}

// newCampaign is valid for an hour from start on.
func newCampaign(id, restaurant string, n int, start time.Time) campaign {
	return campaign{
		Restaurant: restaurant,
		ID:         id,
		Content:    fmt.Sprintf("%s #%d", offers[n%len(offers)], n+1),
		Owner:      "Ivanov Ivan Ivanovich",
		Contact:    "iiivanov@restaurant.ru",
		Start:      start.Unix(),
		End:        start.Add(time.Hour).Unix(),
		Created:    start.Unix(),
	}
}

// value is the message.
func (c campaign) value() []byte {
	b, _ := json.Marshal(c) //nolint:errchkjson // strings and numbers always marshal
	return b
}
