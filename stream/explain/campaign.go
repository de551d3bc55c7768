package explain

import (
	"fmt"
	"time"

	"dinnerbell/internal/precondition"
	"dinnerbell/state/id"
)

// The states of a campaign row, as package sink writes them.
const (
	statePending   = "pending"
	stateFinished  = "finished"
	stateExpired   = "expired"
	stateRejoin    = "rejoin"
	stateParked    = "parked"
	statePaused    = "paused"
	stateCancelled = "cancelled"
)

// judgeCampaign finds the verdict for a client who has no row, from one row of the
// campaign table.
func (e *Evidence) judgeCampaign(r *CampaignRow) finding {
	f := finding{restaurant: r.Restaurant}
	newest := fmt.Sprintf("the message at %d@%d", r.MessageOn, r.MessageAt)
	if isHeld := r.State == stateParked || r.State == statePaused; isHeld && !e.Now.Before(r.End) {
		e.judgeFinished(r, &f, true)
		if f.verdict == CutOff {
			f.why += "; it was " + r.State + " until then"
		}
		return f
	}
	switch r.State {
	case stateParked:
		f.verdict, f.why, f.next = Parked, "the campaign waits for an operator: its audience"+r.audience()+" exceeds limits.max_audience; it ends at "+formatTime(r.End), e.command("approve", r)
	case statePaused:
		f.verdict, f.why, f.next = Paused, "an operator has paused the campaign"+r.command()+"; it ends at "+formatTime(r.End), e.command("resume", r)
	case stateCancelled:
		f.verdict, f.why = Cancelled, "an operator has cancelled the campaign"+r.command()
	case stateExpired:
		f.verdict, f.why = Expired, fmt.Sprintf("the campaign was over when it was received: it ended at %s, %s was accepted at %s", formatTime(r.End), newest, formatTime(r.Accepted))
		if r.Version > 1 {
			f.verdict, f.why = Cancelled, fmt.Sprintf("%s, accepted at %s, has ended the campaign at %s", newest, formatTime(r.Accepted), formatTime(r.End))
		}
	case statePending, stateRejoin:
		e.judgePending(r, &f)
	case stateFinished:
		e.judgeFinished(r, &f, false)
	default:
		f.verdict, f.why = Unexplained, "the campaign is in state "+quoteID(r.State)+", which this dinnerbell does not know"
	}
	return f
}

// judgePending finds the verdict for a campaign that waits or is being sent.
func (e *Evidence) judgePending(r *CampaignRow, f *finding) {
	newest := fmt.Sprintf("the message at %d@%d (version %d, accepted at %s)", r.MessageOn, r.MessageAt, r.Version, formatTime(r.Accepted))
	// An edit begins anew, behind clients whom an earlier version has notified. So does an
	// operator's resume, which leaves the time of the acceptance alone.
	edited := r.State == statePending && r.Version > 1 && r.Cursor == "" && r.Notified > 0 && r.Accepted.After(r.Commanded)
	switch {
	case !e.Now.Before(r.End):
		e.judgeFinished(r, f, true)
	case edited && e.Now.Before(r.Start):
		f.verdict, f.why = Replaced, newest+" replaced the campaign before the client's turn, and starts at "+formatTime(r.Start)
	case edited:
		f.verdict, f.why = Replaced, newest+" replaced the campaign before the client's turn, and waits for its own: "+e.describeWait(r.Lane)
	case e.Now.Before(r.Start):
		f.verdict, f.why = Scheduled, "the campaign starts at "+formatTime(r.Start)+", and is sent to those who are subscribed then"
	default:
		e.judgeUnderWay(r, f)
	}
}

// judgeUnderWay finds the verdict for a campaign in the middle of its fan-out.
func (e *Evidence) judgeUnderWay(r *CampaignRow, f *finding) {
	from := latestOf(r.Accepted, r.Start)
	passed := r.passed(e.Client)
	s := e.subscription(r.Restaurant)
	if s == nil {
		f.verdict, f.why = UnderWay, e.describePosition(r)
		f.gaps = append(f.gaps, e.subscriptionGap(r.Restaurant, "whether the client is subscribed"))
		return
	}
	if !s.Subscribed {
		f.verdict, f.why = NotSubscribed, "the client is not subscribed to restaurant "+quoteID(r.Restaurant)+"; "+e.describePosition(r)
		if p := s.between(from, e.Now); !p.gone.IsZero() {
			f.verdict, f.why = Unsubscribed, "the client's subscription ended at "+formatTime(p.gone)+", before its turn; "+e.describePosition(r)
		}
		return
	}
	f.verdict, f.why = UnderWay, e.describePosition(r)
	switch {
	case !passed:
	case e.LateSubscribers:
		f.why += "; it gets the campaign as a late subscriber"
	case s.at(from) == yes && s.subscribedAfter(from).IsZero():
		f.verdict, f.why = Unexplained, "the client was subscribed all the time, and its turn has passed"
		f.gaps = append(f.gaps, mirrorGap(r.Restaurant))
	default:
		f.verdict, f.why = SubscribedLate, "the client subscribed"+at(s.subscribedAfter(from))+" behind its turn, while the campaign was being sent; join.late_subscribers is false"
		f.next = ReplayHint(r.Sent)
	}
}

// passed reports whether the fan-out has looked at the client's place.
func (r *CampaignRow) passed(client string) bool {
	packed, err := id.Pack(client)
	return err == nil && r.Cursor != "" && packed <= r.Cursor
}

// describePosition describes how far a fan-out is, and where the client lies.
func (e *Evidence) describePosition(r *CampaignRow) string {
	switch {
	case r.Cursor == "" && (r.State == stateRejoin || r.Notified > 0):
		return fmt.Sprintf("the audience is looked at once more, from its start (%d notified so far): %s", r.Notified, e.describeWait(r.Lane))
	case r.Cursor == "":
		return "the campaign has not begun to be sent: " + e.describeWait(r.Lane)
	}
	place := "ahead of the position: its turn comes"
	if r.passed(e.Client) {
		place = "behind the position: its turn has passed"
	}
	progress := fmt.Sprintf("%d notified so far", r.Notified)
	if r.Audience != nil && *r.Audience > 0 {
		progress = fmt.Sprintf("%d of %d notified so far", r.Notified, *r.Audience)
	}
	return fmt.Sprintf("the campaign is being sent (%s, position %s), and the client lies %s", progress, quoteID(r.Cursor.Text()), place)
}

// describeWait says what the campaigns of a lane wait for.
func (e *Evidence) describeWait(n int32) string {
	l := e.lane(n)
	switch {
	case l == nil || l.Owner == nil:
		return e.describeNoOwner(n)
	case l.Owner.Waiting:
		return fmt.Sprintf("lane %d waits for fresh subscriptions (dinnerbell status)", n)
	case l.Owner.Held != "":
		return l.Owner.Held
	case l.Owner.LastError != "":
		return fmt.Sprintf("lane %d (%s): %s", n, l.Owner.State, l.Owner.LastError)
	}
	return fmt.Sprintf("lane %d is %s, and serves it in its turn", n, l.Owner.State)
}

// describeNoOwner says why nobody here owns a lane.
func (e *Evidence) describeNoOwner(n int32) string {
	if e.NoLanes != "" {
		return fmt.Sprintf("the daemon that answers here owns no lane, and so not lane %d: %s", n, e.NoLanes)
	}
	return fmt.Sprintf("no daemon that answers here owns lane %d", n)
}

// isCutOff reports whether the campaign's end came before its fan-out was over: its last
// step was not before the end.
func (r *CampaignRow) isCutOff() bool {
	return !r.Finished.IsZero() && !r.Finished.Before(r.End)
}

// isRefusedBy reports whether the letter of the row's message says why the campaign notified
// nobody. A row that was written before the tables had layout 4 does not have the reason
// itself. A replay that came after the letter has accepted the message anew.
func (r *CampaignRow) isRefusedBy(l *Letter) bool {
	return r.Refusal == "" && r.Notified == 0 && !l.Invalid && !l.Refused.Before(r.Accepted)
}

// judgeFinished finds the verdict for a campaign whose fan-out is over. unfinished: its
// end has passed, and its lane has not noted that.
func (e *Evidence) judgeFinished(r *CampaignRow, f *finding, unfinished bool) {
	if r.Refusal != "" && !unfinished {
		f.verdict, f.why = Refused, "the feedback table refused the campaign: "+r.Refusal
		if l := e.findRefusal(r.MessageOn, r.MessageAt); l != nil {
			f.next = e.retryHint(l)
		} else if e.Now.Before(r.End) {
			f.next = ReplayHint(r.Sent)
		}
		return
	}
	if l := e.findRefusal(r.MessageOn, r.MessageAt); l != nil && r.isRefusedBy(l) && !unfinished {
		f.verdict, f.next = Refused, e.retryHint(l)
		f.why = "the feedback table refused the campaign at " + formatTime(l.Refused) + ": " + l.Reason
		return
	}
	cut := unfinished || r.isCutOff()
	from, to := latestOf(r.Accepted, r.Start), r.End
	if !cut && !r.Finished.IsZero() {
		to = r.Finished
	}
	to = earliestOf(to, e.Now)
	cutOff := func() {
		f.verdict, f.why = CutOff, "the campaign ended at "+formatTime(r.End)+", before the client's turn"
	}
	s := e.subscription(r.Restaurant)
	if s == nil {
		f.gaps = append(f.gaps, e.subscriptionGap(r.Restaurant, "whether and since when the client is subscribed"))
		if cut {
			cutOff()
			return
		}
		f.verdict, f.why = NotSubscribed, "the client was not subscribed when its turn came: the campaign was sent to every subscriber"
		return
	}
	p := s.between(from, to)
	switch {
	case p.before == yes && p.gone.IsZero() && p.appeared.IsZero():
		if cutOff(); !cut {
			f.verdict, f.why = Unexplained, "the client was subscribed while the campaign was sent, and has no row"
			f.gaps = append(f.gaps, mirrorGap(r.Restaurant))
		}
	case p.before == yes && !p.gone.IsZero():
		f.verdict, f.why = Unsubscribed, "the client's subscription ended at "+formatTime(p.gone)+", before its turn"
	case !p.appeared.IsZero() && cut && s.Subscribed && r.Cursor != "" && !r.passed(e.Client):
		cutOff() // it subscribed ahead of the position
	case !p.appeared.IsZero():
		e.judgeLate(r, f, s, p.appeared)
	case p.before == no:
		e.judgeAbsent(r, f, s, from, to)
	case cut:
		cutOff()
		f.gaps = append(f.gaps, e.historyGap(s, from))
	default:
		e.judgeUndated(r, f, s, from)
	}
}

// judgeAbsent finds the verdict for a client who was not subscribed while the campaign
// was sent.
func (e *Evidence) judgeAbsent(r *CampaignRow, f *finding, s *Subscription, from, to time.Time) {
	switch gone, appeared := s.goneBefore(from), s.subscribedAfter(to); {
	case !appeared.IsZero():
		e.judgeLate(r, f, s, appeared)
	case !gone.IsZero():
		f.verdict, f.why = Unsubscribed, "the client's subscription ended at "+formatTime(gone)+", before the campaign was sent"
	default:
		f.verdict, f.why = NotSubscribed, "the client was not subscribed to restaurant "+quoteID(r.Restaurant)+", as far as the history reaches: since "+formatTime(s.Since)
	}
}

// judgeLate finds the verdict for a client who subscribed behind its turn.
func (e *Evidence) judgeLate(r *CampaignRow, f *finding, s *Subscription, appeared time.Time) {
	if left := s.goneBefore(e.Now); !s.Subscribed && appeared.Before(r.End) && left.After(appeared) {
		f.verdict, f.why = Unsubscribed, fmt.Sprintf("the client subscribed at %s, behind its turn, and its subscription ended at %s", formatTime(appeared), formatTime(left))
		return
	}
	if e.LateSubscribers && e.Now.Before(r.End) {
		f.verdict, f.why = UnderWay, "the client subscribed at "+formatTime(appeared)+", and gets the campaign as a late subscriber: "+e.describeWait(r.Lane)
		return
	}
	reason := "; join.late_subscribers is false"
	switch {
	case !appeared.Before(r.End):
		reason = ", at or after the campaign's end"
	case e.LateSubscribers:
		reason = "; the campaign ended before the lane came to it"
	}
	f.verdict, f.why = SubscribedLate, fmt.Sprintf("the client subscribed at %s, behind its turn: the campaign was accepted at %s%s%s", formatTime(appeared), formatTime(r.Accepted), finishedAt(r), reason)
	if e.Now.Before(r.End) {
		f.next = ReplayHint(r.Sent)
	}
}

// judgeUndated finds the verdict where the history does not reach back to the fan-out. A
// finished fan-out has served every subscriber, so the client was none when its turn came.
func (e *Evidence) judgeUndated(r *CampaignRow, f *finding, s *Subscription, from time.Time) {
	f.gaps = append(f.gaps, e.historyGap(s, from))
	if !s.Subscribed {
		f.verdict, f.why = NotSubscribed, "the client is not subscribed to restaurant "+quoteID(r.Restaurant)+", and was not when its turn came: the campaign was sent to every subscriber"
		return
	}
	if e.LateSubscribers && e.Now.Before(r.End) {
		f.verdict, f.why = UnderWay, "the client is subscribed, and gets the campaign as a late subscriber: "+e.describeWait(r.Lane)
		return
	}
	f.verdict, f.why = SubscribedLate, fmt.Sprintf("the client is subscribed, and was not when its turn came: the campaign, accepted at %s%s, was sent to every subscriber", formatTime(r.Accepted), finishedAt(r))
	if e.Now.Before(r.End) {
		f.next = ReplayHint(r.Sent)
	}
}

// judgeUnknown finds the verdict where the campaign table has no row.
func (e *Evidence) judgeUnknown() finding {
	f := finding{verdict: CampaignUnknown, restaurant: e.Restaurant, why: "no message of the campaign was accepted"}
	if e.whyUnread(SourceMessage) != "" || e.whyUnread(SourceDeadLetter) != "" {
		f.why = "no message of the campaign is known to be accepted"
	}
	if e.Restaurant != "" && len(e.Campaigns) > 0 {
		f.why = "the campaign has other restaurants, and none of the id " + quoteID(e.Restaurant)
	}
	for i := range e.Messages {
		m := &e.Messages[i]
		if !m.Unread || e.Restaurant != "" && m.Restaurant != e.Restaurant {
			continue
		}
		f.verdict, f.restaurant = NotRead, m.Restaurant
		f.why = fmt.Sprintf("the message at %d@%d, sent at %s, is not accepted yet: %s", m.Partition, m.Offset, formatTime(m.Time), e.describeWait(m.Partition))
		if m.Invalid != "" {
			f.why += "; it will be refused: " + m.Invalid
		}
		return f
	}
	if l := e.findRefusal(0, -1); l != nil {
		f.verdict, f.next = Refused, e.retryHint(l)
		f.why = "the message " + l.origin() + " was refused: " + l.Reason
		if l.Invalid {
			f.why += "; a corrected message of the campaign is sent to everybody"
		}
		return f
	}
	for i := range e.Messages {
		if m := &e.Messages[i]; e.Restaurant == "" || m.Restaurant == e.Restaurant {
			e.judgeForgotten(m, &f)
			return f
		}
	}
	return f
}

// rowsKept is how long the campaign table keeps a row behind the campaign's end.
const rowsKept = 7 * 24 * time.Hour

// judgeForgotten finds the verdict for a message that lies behind the lane's position and
// of which nothing else is left.
func (e *Evidence) judgeForgotten(m *Message, f *finding) {
	f.restaurant = m.Restaurant
	place := fmt.Sprintf("the message at %d@%d, sent at %s,", m.Partition, m.Offset, formatTime(m.Time))
	begin, err := time.Parse(time.RFC3339, e.Start)
	switch {
	case err == nil && m.Time.Before(begin):
		f.verdict, f.why = BeforeDeployment, place+" lies before kafka.start, "+e.Start
	case e.Start == "latest" && (m.End.IsZero() || e.Now.Before(m.End.Add(rowsKept))):
		f.verdict, f.why = BeforeDeployment, place+" lies before the place where the deployment began to read: kafka.start is latest"
	case !m.End.IsZero() && !e.Now.Before(m.End.Add(rowsKept)):
		f.verdict, f.why = Unexplained, place+" was read, and the campaign's row is deleted: it is kept for seven days behind the end, "+formatTime(m.End)
		f.gaps = append(f.gaps, Gap{Source: SourceCampaign, What: "why the client has no row of a campaign that is over for so long", Tell: "the daemon's log of that time"})
	default:
		f.verdict, f.why = Unexplained, place+" lies behind the lane's position, and the campaign table has no row of it"
		f.gaps = append(f.gaps, Gap{Source: SourceCampaign, What: "whether the message lies before the deployment's first position, or `dinnerbell resolve --accept-missing` has skipped it", Tell: "the log of setup, run and resolve"})
	}
	if e.Now.Before(m.End) {
		f.next = ReplayHint(m.Time)
	}
}

func (e *Evidence) subscriptionGap(restaurant, what string) Gap {
	return Gap{Source: SourceState, What: what + " (restaurant " + quoteID(restaurant) + ")", Tell: "dinnerbell explain again with the daemon running, or: dinnerbell subscribers " + precondition.QuoteArgument(restaurant)}
}

func (e *Evidence) historyGap(s *Subscription, from time.Time) Gap {
	g := Gap{Source: SourceHistory, What: "when the client subscribed or unsubscribed: ", Tell: "the owner of the subscriptions' table, or its log"}
	switch {
	case s.From == SourceTable:
		g.What += "the daemon, which has the history, does not answer"
		g.Tell = "dinnerbell explain again with the daemon running"
	case s.Since.IsZero():
		g.What += "there is no local history that reaches back (state.history; it is lost with the local state)"
	default:
		g.What += "the local history reaches back to " + formatTime(s.Since) + ", and the campaign was accepted at " + formatTime(from)
	}
	return g
}

// mirrorGap names what to look at if everything speaks for a notification.
func mirrorGap(restaurant string) Gap {
	return Gap{Source: SourceState, What: "why a subscriber was left out", Tell: "dinnerbell verify (are the local subscriptions right?), dinnerbell subscribers " + precondition.QuoteArgument(restaurant) + ", and the daemon's log"}
}

// ReplayHint is the command that reads a message again and notifies those who were missed.
func ReplayHint(sent time.Time) string {
	return "dinnerbell replay --from " + sent.UTC().Truncate(time.Second).Format(time.RFC3339)
}

func (e *Evidence) retryHint(l *Letter) string {
	if l.From == "" || l.Invalid {
		return ""
	}
	return fmt.Sprintf("dinnerbell dead-letters retry %d:%d", l.Partition, l.Offset)
}

// command is an operator's command about a campaign.
func (e *Evidence) command(name string, r *CampaignRow) string {
	return "dinnerbell " + name + " " + precondition.QuoteArgument(e.Campaign) + " --restaurant " + precondition.QuoteArgument(r.Restaurant)
}

func (r *CampaignRow) audience() string {
	if r.Audience == nil {
		return ""
	}
	return fmt.Sprintf(" of %d", *r.Audience)
}

// command names an operator's last command.
func (r *CampaignRow) command() string {
	if r.Command == "" {
		return at(r.Commanded)
	}
	return at(r.Commanded) + " (" + r.Command + ")"
}

func (l *Letter) origin() string {
	if l.From == "" {
		return "in the dead letters"
	}
	return fmt.Sprintf("at %d@%d", l.FromLane, l.FromAt)
}

func finishedAt(r *CampaignRow) string {
	if r.Finished.IsZero() {
		return ""
	}
	return " and finished at " + formatTime(r.Finished)
}

func latestOf(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliestOf(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// formatTime writes a time for people, to the millisecond where it has a part of a second.
func formatTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.999Z") }

// at writes " at TIME", or nothing for a time that is not known.
func at(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " at " + formatTime(t)
}

// quoteID writes an id within a sentence, cut where it is long.
func quoteID(s string) string { return fmt.Sprintf("%.200q", s) }
