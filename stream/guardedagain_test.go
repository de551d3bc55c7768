package stream

import (
	"testing"

	"dinnerbell/state/id"
	"dinnerbell/stream/sink"
)

// A campaign under way of which the table took no late subscriber for a while, and takes
// rows again, is refused no more.
func TestCampaignThatTheTableTakesAgainIsNotRefused(t *testing.T) {
	t.Parallel()
	g, l := newGuardedCampaigns(), newLive("c1")
	st := newStep(&sink.FeedbackTable{})
	st.noteRefused(&clientPick{live: l, late: true, clients: &id.List{}}, "the table is against it")
	g.noteStep(st)
	if !g.isRefused(l) {
		t.Fatal("the campaign is not refused")
	}
	st = newStep(&sink.FeedbackTable{})
	st.picks = []*clientPick{{live: l, clients: &id.List{}, notified: 5}}
	g.noteStep(st)
	if g.isRefused(l) {
		t.Error("the campaign is still refused: its late subscribers are passed over in silence")
	}
}
