package stream

import (
	"testing"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
)

func packID(t testing.TB, text string) id.ID {
	t.Helper()
	id, err := id.Pack(text)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// example is the campaign of the contract.
func example() *campaign.Campaign {
	return &campaign.Campaign{
		RestaurantID: "123e4567-e89b-12d3-a456-426614174000", ID: "123e4567-e89b-12d3-a456-426614174003", Content: "first campaign",
		Owner: "Ivanov Ivan Ivanovich", OwnerContact: "iiivanov@restaurant.ru", Start: 1659203516, End: 2659207116, Created: 1659131516,
	}
}
