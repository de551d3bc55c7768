package operator

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/stream/sink"
)

// ListedCampaign is a campaign with the feedback that its clients gave.
type ListedCampaign struct {
	sink.ListedCampaign
	Feedback     int64  // rows with feedback; -1: not counted
	FeedbackNote string // why it is not counted; "" where nobody can have given any
}

// CampaignListing are some campaigns of all lanes.
type CampaignListing struct {
	Now       time.Time // of Postgres
	Campaigns []ListedCampaign
	Matching  int64 // campaigns that match, listed or not
}

// CampaignQuery selects the campaigns of a listing.
type CampaignQuery struct {
	Groups     []sink.PhaseGroup // none: all
	Restaurant string            // "": all
	Limit      int               // 0: none
}

const (
	// feedbackPatience bounds the time for counting the feedback of all listed
	// campaigns, feedbackEach that of one.
	feedbackPatience = 2 * time.Second
	feedbackEach     = 500 * time.Millisecond
	// feedbackLeast is the least time that a count is begun with.
	feedbackLeast = 20 * time.Millisecond
)

// ListCampaigns lists campaigns as the sink knows them. It needs no daemon.
func ListCampaigns(ctx context.Context, cfg sink.Config, q CampaignQuery) (*CampaignListing, error) {
	conn, err := cfg.Connect(ctx, "dinnerbell campaigns")
	if err != nil {
		return nil, err
	}
	defer sink.CloseConn(conn)
	out, err := listCampaigns(ctx, conn, cfg, q)
	return out, sink.ExplainDenied(ctx, conn, cfg, sink.ListingRights, err)
}

func listCampaigns(ctx context.Context, conn *pgx.Conn, cfg sink.Config, q CampaignQuery) (*CampaignListing, error) {
	t := cfg.Tables()
	if err := sink.CheckLayout(ctx, conn, t); err != nil {
		return nil, err
	}
	if len(q.Groups) == 0 {
		q.Groups = []sink.PhaseGroup{sink.GroupLive, sink.GroupScheduled, sink.GroupDone}
	}
	found, err := t.ListCampaigns(ctx, conn, q.Groups, q.Restaurant, q.Limit)
	if err != nil {
		return nil, err
	}
	out := &CampaignListing{Now: found.Now, Matching: found.Matching, Campaigns: make([]ListedCampaign, len(found.Campaigns))}
	for i, c := range found.Campaigns {
		out.Campaigns[i] = ListedCampaign{ListedCampaign: c, Feedback: -1}
	}
	countFeedback(ctx, conn, t, out.Campaigns)
	return out, nil
}

// countFeedback counts the feedback of campaigns, in bounded time. A campaign whose
// feedback is not counted says why; that is no reason not to list it.
func countFeedback(ctx context.Context, conn *pgx.Conn, t sink.Tables, list []ListedCampaign) {
	found, err := sink.ReadCatalogue(ctx, conn, t)
	if err == nil {
		err = found.Feedback.CanCountFeedback(ctx, conn)
	}
	end := time.Now().Add(feedbackPatience)
	for i := range list {
		c := &list[i]
		if c.Notified+c.Already == 0 {
			continue
		}
		if left := time.Until(end); err == nil && left < feedbackLeast {
			err = fmt.Errorf("%w: the campaigns before it took all of the %s for counting", sink.ErrNotCounted, feedbackPatience)
		}
		each := err
		if each == nil {
			c.Feedback, each = found.Feedback.CountFeedback(ctx, conn, c.Key, min(time.Until(end), feedbackEach))
		}
		if each != nil {
			c.Feedback, c.FeedbackNote = -1, each.Error()
		}
	}
}
