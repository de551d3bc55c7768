package stream

import (
	"slices"
	"sync"
	"time"

	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// RecentKind is the last news of a campaign or message, as Recent lists it.
type RecentKind string

// The kinds of news.
const (
	RecentAccepted   RecentKind = "accepted"   // it goes out, or waits for that
	RecentPaused     RecentKind = "paused"     // an operator holds it
	RecentResumed    RecentKind = "resumed"    // an operator lets it go on
	RecentApproved   RecentKind = "approved"   // an operator lets it go, however large its audience is
	RecentParked     RecentKind = "parked"     // its audience is too large: it waits for an operator
	RecentFinished   RecentKind = "finished"   // everybody was looked at, and the last notification is shipped
	RecentEnded      RecentKind = "ended"      // its end came before everybody was looked at
	RecentMetNobody  RecentKind = "met nobody" // nobody subscribes to its restaurant
	RecentExpired    RecentKind = "expired"    // its end had passed when it was received
	RecentCancelled  RecentKind = "cancelled"  // an operator or its newest message ends it
	RecentSuperseded RecentKind = "superseded" // a newer message of the campaign is there: this one does nothing
	RecentRefused    RecentKind = "refused"    // the message is in the dead letters
)

// RecentCampaign is a campaign or a message that this service has handled lately. It
// names no client.
type RecentCampaign struct {
	Campaign   string // empty: of a refused message it is not known; of a campaign that the feedback table refuses it is
	Restaurant string
	Title      string // the beginning of its content; empty: not known
	Lane       int32
	Offset     int64 // of its message; -1: an operator's command is the news
	Start, End int64 // Unix seconds
	What       RecentKind
	Reason     string        // of a refusal
	At         time.Time     // of the news
	Audience   int64         // subscribers; -1: not counted
	Notified   int64         // as its row counts, like the next one
	Already    int64         // left out because they had the campaign from another restaurant or another job
	Took       time.Duration // from its receipt, or its start if that was later, until its last notification was shipped; 0: not known
}

// recentLength is how many campaigns Recent lists.
const recentLength = 50

// recentCampaigns lists the campaigns that were handled last.
type recentCampaigns struct {
	mu   sync.Mutex
	list []RecentCampaign // the newest is the last
}

// isOpen reports whether more news of the campaign will follow.
func (k RecentKind) isOpen() bool {
	switch k {
	case RecentAccepted, RecentPaused, RecentResumed, RecentApproved, RecentParked:
		return true
	default:
		return false
	}
}

// addUp returns the counts as a reader of the campaign's row understands them: whoever a
// finished campaign has met is its audience where that was not counted.
func (k RecentKind) addUp(c sink.RowCounts) sink.RowCounts {
	if c.Audience < 0 && (k == RecentFinished || k == RecentMetNobody) {
		c.Audience = c.Met()
	}
	return c
}

// setCounts sets the counts to those of the campaign's row.
func (c *RecentCampaign) setCounts(of sink.RowCounts) {
	of = c.What.addUp(of)
	c.Audience, c.Notified, c.Already = of.Audience, of.Notified, of.Already
}

// updateCounts sets the counts of a campaign that is listed as over: late subscribers got
// it since.
func (r *recentCampaigns) updateCounts(k campaign.Key, c sink.RowCounts) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range slices.Backward(r.list) {
		n := &r.list[i]
		if n.Campaign != k.Campaign || n.Restaurant != k.Restaurant || n.What == RecentSuperseded {
			continue
		}
		if n.What == RecentFinished || n.What == RecentEnded || n.What == RecentMetNobody {
			n.setCounts(c)
		}
		return
	}
}

// add adds news. News of a campaign that is listed as open take its place. Of a
// flood only the last ones are looked at.
func (r *recentCampaigns) add(news ...RecentCampaign) {
	if len(news) == 0 {
		return
	}
	news = news[max(0, len(news)-recentLength):]
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range news {
		n := &news[i]
		if at := r.indexOpen(n); at >= 0 {
			r.list[at] = *n
			continue
		}
		if len(r.list) == recentLength {
			copy(r.list, r.list[1:])
			r.list = r.list[:recentLength-1]
		}
		r.list = append(r.list, *n)
	}
}

// indexOpen returns the place where the news' campaign is listed as open; -1 where
// it is not, or where the news are of a message that does nothing.
func (r *recentCampaigns) indexOpen(n *RecentCampaign) int {
	if n.What == RecentSuperseded || n.What == RecentRefused && n.Campaign == "" || n.What == RecentExpired {
		return -1
	}
	for i := len(r.list) - 1; i >= 0; i-- {
		if c := &r.list[i]; c.What.isOpen() && c.Campaign == n.Campaign && c.Restaurant == n.Restaurant {
			return i
		}
	}
	return -1
}

// snapshot lists the campaigns, the newest first.
func (r *recentCampaigns) snapshot() []RecentCampaign {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := slices.Clone(r.list)
	slices.Reverse(out)
	return out
}
