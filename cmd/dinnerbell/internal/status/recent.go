package status

import (
	"time"

	"dinnerbell/stream"
)

// RecentCampaign is a campaign, or a message of the campaigns topic, that this process
// has handled lately. It names no client: anybody may read a status.
type RecentCampaign struct {
	Campaign   string `json:"campaign,omitempty"` // absent: of a refused message it is not known
	Restaurant string `json:"restaurant,omitempty"`
	// Title is the beginning of the campaign's content; absent: not known.
	Title  string `json:"title,omitempty"`
	Lane   int32  `json:"lane"`
	Offset int64  `json:"offset"`          // of its message; -1: an operator's command is the news
	Start  int64  `json:"start,omitempty"` // Unix seconds
	End    int64  `json:"end,omitempty"`
	// What is accepted, paused, resumed, approved, parked, finished, ended, met nobody, expired, cancelled, superseded or
	// refused.
	What     string    `json:"what"`
	Reason   string    `json:"reason,omitempty"`
	At       time.Time `json:"at"`
	Audience *int64    `json:"audience,omitempty"` // absent: not counted
	Notified int64     `json:"notified"`
	LeftOut  int64     `json:"left_out"` // clients who had the campaign
	// MS is the time from the campaign's receipt, or its start if that was later, until
	// its last notification was shipped.
	MS float64 `json:"ms,omitempty"`
}

func newRecentReport(list []stream.RecentCampaign) []RecentCampaign {
	out := make([]RecentCampaign, len(list)) // never null
	for i := range list {
		c := &list[i]
		out[i] = RecentCampaign{
			Campaign: c.Campaign, Restaurant: c.Restaurant, Title: oneLine(c.Title), Lane: c.Lane, Offset: c.Offset, Start: c.Start, End: c.End, What: string(c.What),
			Reason: oneLine(c.Reason), At: c.At.UTC(), Notified: c.Notified, LeftOut: c.Already, MS: roundToTenth(float64(c.Took) / float64(time.Millisecond)),
		}
		if c.Audience >= 0 {
			out[i].Audience = &c.Audience
		}
	}
	return out
}
