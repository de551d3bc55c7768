package record

import (
	"fmt"
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

// uuids makes n different UUIDs.
func uuids(n int) []string {
	out := make([]string, n)
	for i := range out {
		x := uint64(i) * 0x9e3779b97f4a7c15
		out[i] = fmt.Sprintf("%08x-%04x-4%03x-9%03x-%012x", uint32(x>>32), uint16(x>>16), x&0xfff, i&0xfff, i)
	}
	return out
}
