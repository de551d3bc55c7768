package stream

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// BenchmarkNoteCampaigns is what counts, log and list of recent campaigns cost a step
// that accepts and finishes as many small campaigns as a step can; the committer does it
// between a step's commit and its shipping.
func BenchmarkNoteCampaigns(b *testing.B) {
	svc := &Service{log: foldedLog{log: slog.New(slog.DiscardHandler)}, now: time.Now}
	defer svc.log.closeWindows()
	l := &lane{svc: svc}
	st := newStep(nil)
	for i := range intakeMessages {
		c := &campaign.Campaign{ID: fmt.Sprintf("123e4567-e89b-12d3-a456-4266%08d", i), RestaurantID: "123e4567-e89b-12d3-a456-426614174000", End: campaign.MaxUnix}
		live := &liveCampaign{Campaign: c}
		list := &id.List{}
		list.Append("client")
		st.rows[c.Key()] = &campaignRow{liveCampaign: live, accept: true, served: true, state: sink.StateFinished, cursor: "client"}
		st.picks = append(st.picks, &clientPick{live: live, clients: list, notified: 1})
	}
	b.ReportAllocs()
	for seq := int64(1); b.Loop(); seq++ {
		for _, r := range st.rows {
			r.over = false
		}
		l.noteCampaigns(st, seq)
		l.noteFinished(seq)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*intakeMessages), "ns/campaign")
}
