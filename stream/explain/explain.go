package explain

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Verdict is the one answer to a question. Its words are stable: scripts read them.
type Verdict string

// The verdicts.
const (
	Notified         Verdict = "notified"            // it has the notification, in both sinks
	NotifiedEarlier  Verdict = "notified_earlier"    // it has the campaign's one notification, for another restaurant than asked
	NotShipped       Verdict = "not_shipped"         // decided, and not in the notifications topic yet
	NotSubscribed    Verdict = "not_subscribed"      // it was not subscribed
	SubscribedLate   Verdict = "subscribed_too_late" // it subscribed behind its turn
	Unsubscribed     Verdict = "unsubscribed"        // its subscription ended before its turn
	CampaignUnknown  Verdict = "campaign_unknown"    // no message of that id was accepted
	NotRead          Verdict = "not_read_yet"        // the message waits in the campaigns topic
	Scheduled        Verdict = "scheduled"           // the campaign's start lies ahead
	UnderWay         Verdict = "under_way"           // the campaign is being sent; the client's turn may come
	Parked           Verdict = "parked"              // the campaign waits for an operator's approval
	Paused           Verdict = "paused"              // an operator has stopped it for a while
	Cancelled        Verdict = "cancelled"           // a message or an operator has stopped it
	Expired          Verdict = "expired_on_arrival"  // its end had passed when it was received
	CutOff           Verdict = "cut_off"             // its end came before the client's turn
	Replaced         Verdict = "replaced"            // a newer edit took its place before the client's turn
	Refused          Verdict = "refused"             // the message is in the dead letters
	ClientRefused    Verdict = "client_refused"      // the client's id, or its row, cannot be stored
	BeforeDeployment Verdict = "before_deployment"   // the message lies before the place where the deployment began to read
	Unexplained      Verdict = "unexplained"         // not notified, and the evidence has no reason
	Unknown          Verdict = "unknown"             // the evidence does not tell whether it was notified
)

// Verdicts lists all of them.
var Verdicts = []Verdict{
	Notified, NotifiedEarlier, NotShipped, NotSubscribed, SubscribedLate, Unsubscribed, CampaignUnknown, NotRead, Scheduled, UnderWay, Parked, Paused,
	Cancelled, Expired, CutOff, Replaced, Refused, ClientRefused, BeforeDeployment, Unexplained, Unknown,
}

// Explanation is the answer to a question.
type Explanation struct {
	Campaign   string  `json:"campaign"`
	Client     string  `json:"client"`
	Restaurant string  `json:"restaurant,omitempty"` // that the verdict speaks of
	Verdict    Verdict `json:"verdict"`
	// Notified reports whether the client has the notification in both sinks; nil: not
	// known.
	Notified *bool  `json:"notified"`
	Why      string `json:"why"`            // the verdict in a sentence
	Next     string `json:"next,omitempty"` // a command that would change it
	Evidence []Line `json:"evidence"`
	NotKnown []Gap  `json:"not_known"`
}

// Line is one piece of evidence.
type Line struct {
	Source Source     `json:"source"`
	Place  string     `json:"place"` // the row, the offset or the position that it comes from
	What   string     `json:"what"`
	Time   *time.Time `json:"time,omitempty"`
}

// finding is the verdict about one restaurant, or about the campaign as a whole.
type finding struct {
	verdict    Verdict
	restaurant string
	why        string
	next       string
	gaps       []Gap
}

// Explain finds the verdict.
func Explain(e *Evidence) *Explanation {
	f := e.findVerdict()
	e.addUnread(&f)
	x := &Explanation{
		Campaign: e.Campaign, Client: e.Client, Restaurant: f.restaurant, Verdict: f.verdict, Why: f.why, Next: f.next,
		Evidence: e.lines(), NotKnown: append(slices.Clone(e.Gaps), f.gaps...),
	}
	if x.NotKnown == nil {
		x.NotKnown = []Gap{}
	}
	if f.verdict != Unknown {
		notified := f.verdict == Notified || f.verdict == NotifiedEarlier
		x.Notified = &notified
	}
	return x
}

func (e *Evidence) findVerdict() finding {
	switch {
	case e.Feedback != nil:
		return e.judgeRow()
	case e.isMissing(SourceFeedback):
		return finding{verdict: Unknown, restaurant: e.Restaurant, why: "whether the client was notified is not known: what the sink has could not be read" + causeSuffix(e.whyUnread(SourceFeedback))}
	case e.Misfit != "":
		return finding{verdict: ClientRefused, restaurant: e.Restaurant, why: "the client cannot be served: " + e.Misfit}
	case e.isMissing(SourceCampaign):
		return finding{verdict: Unexplained, restaurant: e.Restaurant, why: "the client has no row of the campaign, and the campaign table could not be read" + causeSuffix(e.whyUnread(SourceCampaign))}
	}
	if l := e.leftOutLetter(); l != nil {
		return finding{verdict: ClientRefused, restaurant: l.Restaurant, why: "the client was left out: " + l.Reason}
	}
	var found []finding
	for i := range e.Campaigns {
		if r := &e.Campaigns[i]; e.Restaurant == "" || r.Restaurant == e.Restaurant {
			found = append(found, e.judgeCampaign(r))
		}
	}
	if len(found) == 0 {
		return e.judgeUnknown()
	}
	return slices.MinFunc(found, func(a, b finding) int {
		return cmp.Compare(e.rankFinding(&a), e.rankFinding(&b))
	})
}

// rankFinding orders the restaurants of one campaign: first the one that the client is
// subscribed to, then the ones of which more is to be said than that it is not.
func (e *Evidence) rankFinding(f *finding) int {
	n := 0
	if s := e.subscription(f.restaurant); s == nil || !s.Subscribed {
		n = 2
	}
	if f.verdict == NotSubscribed {
		n++
	}
	return n
}

// judgeRow finds the verdict for a client who has a row.
func (e *Evidence) judgeRow() finding {
	row := e.Feedback
	f := finding{verdict: Notified, restaurant: row.Restaurant}
	decided := "decided at " + formatTime(row.Decided)
	switch {
	case e.Record != nil:
		f.why = fmt.Sprintf("%s, and in topic %s since %s", decided, e.Record.Topic, formatTime(e.Record.Time))
	case e.Step != nil && e.Step.Shipped < 0:
		f.verdict, f.why = Unknown, decided+"; whether it is shipped is not known: the lane's progress could not be read"+causeSuffix(e.whyUnread(SourceRecord))
		return f
	case e.Step != nil && e.Step.Seq > e.Step.Shipped:
		f.verdict, f.why = NotShipped, decided+", and not shipped yet: "+e.describeDelay(e.Step.Lane)
		return f
	case e.isMissing(SourceOutbox):
		f.verdict, f.why = Unknown, decided+"; whether it is shipped is not known: the outbox could not be read"+causeSuffix(e.whyUnread(SourceOutbox))
		return f
	case e.whyUnread(SourceRecord) != "" && e.Search != nil:
		f.why = decided + e.describeShipped() + "; no record of it was found before the search failed: " + e.whyUnread(SourceRecord)
	case e.whyUnread(SourceRecord) != "":
		f.why = decided + e.describeShipped() + "; its record could not be looked for: " + e.whyUnread(SourceRecord)
	case e.Search == nil:
		f.why = decided + e.describeShipped()
	default:
		f.why = decided + "; no record of it was found"
		f.gaps = append(f.gaps, e.recordGap())
	}
	if e.Restaurant != "" && e.Restaurant != row.Restaurant {
		f.verdict = NotifiedEarlier
		f.why = "the client has the campaign already, for restaurant " + quoteID(row.Restaurant) + ": " + f.why
	}
	return f
}

// describeShipped says how it is known that the notification is shipped, without its record.
func (e *Evidence) describeShipped() string {
	if e.Step == nil {
		return ", and shipped: the outbox does not hold it any more"
	}
	return fmt.Sprintf(", and shipped: step %d of lane %d is among those that are shipped", e.Step.Seq, e.Step.Lane)
}

// causeSuffix appends why something could not be read.
func causeSuffix(cause string) string {
	if cause == "" {
		return ""
	}
	return ": " + cause
}

// addUnread adds to a verdict that rests on what was not found which topics could not be
// read: what they hold may say otherwise.
func (e *Evidence) addUnread(f *finding) {
	about := "whether the client was left out is not known: "
	switch f.verdict {
	case CampaignUnknown:
		about = "whether the message was refused is not known: "
	case NotSubscribed, SubscribedLate, Unsubscribed, CutOff, BeforeDeployment, Unexplained:
	default:
		return
	}
	if cause := e.whyUnread(SourceDeadLetter); cause != "" {
		f.why += "; the dead letters could not be read, so " + about + cause
	}
	if cause := e.whyUnread(SourceMessage); cause != "" && f.verdict == CampaignUnknown {
		f.why += "; the campaigns topic could not be searched: " + cause
	}
}

// recordGap says why a shipped record was not found.
func (e *Evidence) recordGap() Gap {
	g := Gap{Source: SourceRecord, What: fmt.Sprintf("where the record is: topic %s has none of this key in what was read", e.Search.Topic)}
	if e.Search.Partial {
		g.What += ", and the search ended at its bounds"
	} else {
		g.What += "; retention has deleted it, or the row is another job's and never had a record"
	}
	g.Tell = "dinnerbell audit, for the steps that the outbox still holds; else a consumer of topic " + e.Search.Topic + " that has its own copy"
	return g
}

// describeDelay says why a lane's step is not shipped.
func (e *Evidence) describeDelay(n int32) string {
	l := e.lane(n)
	switch {
	case l == nil || l.Owner == nil:
		if e.NoLanes != "" {
			return e.describeNoOwner(n)
		}
		return e.describeNoOwner(n) + "; see the log of the daemon that does"
	case l.Owner.LastError != "":
		return fmt.Sprintf("lane %d (%s): %s", n, l.Owner.State, l.Owner.LastError)
	}
	return fmt.Sprintf("lane %d is %s; a step is shipped within milliseconds of its decision", n, l.Owner.State)
}

// leftOutLetter returns the newest letter that names the client as left out.
func (e *Evidence) leftOutLetter() *Letter {
	for i := range e.Letters {
		l := &e.Letters[i]
		if l.LeftOut && l.NamesClient && (e.Restaurant == "" || l.Restaurant == e.Restaurant) {
			return l
		}
	}
	return nil
}

// findRefusal returns the newest letter of a refused message, of any message where offset is
// negative; nil if there is none.
func (e *Evidence) findRefusal(lane int32, offset int64) *Letter {
	for i := range e.Letters {
		l := &e.Letters[i]
		if l.LeftOut || e.Restaurant != "" && l.Restaurant != "" && l.Restaurant != e.Restaurant {
			continue
		}
		if offset < 0 || l.FromLane == lane && l.FromAt == offset {
			return l
		}
	}
	return nil
}
