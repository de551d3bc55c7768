package sink

import (
	"fmt"
	"testing"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
)

// patience bounds how long a test waits for an answer that must come.
const patience = envtest.Patience

func packID(t testing.TB, text string) id.ID {
	t.Helper()
	packed, err := id.Pack(text)
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

func exampleCampaign() *campaign.Campaign {
	return &campaign.Campaign{
		RestaurantID: "r1", ID: "c1", Content: "first campaign", Owner: "owner", OwnerContact: "o@example.com",
		Start: 1659203516, End: 2659207116, Created: 1659131516,
	}
}

// listClients makes the ids of n clients.
func listClients(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s%04x-e89b-12d3-a456-426614174000", prefix, i)
	}
	return out
}
