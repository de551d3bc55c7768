package stream

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// logHook calls itself for each record.
type logHook func()

func (logHook) Enabled(context.Context, slog.Level) bool    { return true }
func (h logHook) Handle(context.Context, slog.Record) error { h(); return nil }
func (h logHook) WithAttrs([]slog.Attr) slog.Handler        { return h }
func (h logHook) WithGroup(string) slog.Handler             { return h }

// A late step may commit while the shipper logs the end of its campaign: the campaign is
// listed with the counts of that step.
func TestLateStepWhileItsCampaignIsLogged(t *testing.T) {
	t.Parallel()
	c := &campaign.Campaign{ID: "c", RestaurantID: "r", Start: 1, End: campaign.MaxUnix}
	var l *lane
	svc := &Service{now: time.Now}
	svc.log = foldedLog{log: slog.New(logHook(func() {
		l.noteLateCounts(c.Key(), sink.RowCounts{Audience: 22, Notified: 22})
	}))}
	defer svc.log.closeWindows()
	l = &lane{svc: svc, unshipped: []finishedCampaign{{liveCampaign: &liveCampaign{Campaign: c}, seq: 1, what: RecentFinished, counts: sink.RowCounts{Audience: 20, Notified: 20}}}}
	l.noteFinished(1)
	if got := svc.recent.snapshot(); len(got) != 1 || got[0].Notified != 22 || got[0].Audience != 22 {
		t.Errorf("listed: %+v", got)
	}
	if len(l.unshipped) != 0 {
		t.Errorf("%d campaigns are unshipped", len(l.unshipped))
	}
}
