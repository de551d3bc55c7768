package demo

import (
	"fmt"
	"time"

	"dinnerbell/internal/testenv/workload"
)

// offers are the texts of campaigns, in the order in which campaigns come.
var offers = []string{
	"Two pizzas for one", "Ramen after ten", "Free delivery tonight", "Kids eat free",
	"Dumpling hour", "Third taco on us", "Half-price lasagne", "Soup of the day",
	"Chef's table", "Curry at cost", "Sushi happy hour", "Breakfast all day",
	"Sunday roast", "Falafel friday", "Cake with coffee", "Burger and a shake",
}

// newCampaign returns the n-th campaign, valid for an hour from start on.
func newCampaign(id, restaurant string, n int, start time.Time) workload.Campaign {
	c := workload.NewCampaign(id, restaurant, start, time.Hour)
	c.Content = fmt.Sprintf("%s #%d", offers[n%len(offers)], n+1)
	return c
}
