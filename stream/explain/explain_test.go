package explain

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/state/id"
)

// noon is the present of the tests; the campaign is valid from ten to two.
var noon = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func hours(n float64) time.Time { return noon.Add(time.Duration(n * float64(time.Hour))) }

func cursor(t *testing.T, text string) id.ID {
	t.Helper()
	packed, err := id.Pack(text)
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

// finished is evidence of a campaign that was accepted at ten and sent by five past ten,
// and of a client without a row.
func finished() *Evidence {
	return &Evidence{
		Question: Question{Campaign: "c", Client: "k"}, Now: noon, Start: "earliest", FeedbackTable: "feedback", CampaignTable: "campaign",
		Campaigns: []CampaignRow{{Restaurant: "r", Lane: 1, Version: 1, MessageOn: 1, MessageAt: 7, Sent: hours(-2), Start: hours(-2), End: hours(2),
			State: "finished", Accepted: hours(-2), Started: hours(-2), Finished: hours(-1.9), Notified: 10}},
		Lanes: []Lane{{Lane: 1, Decided: 3, Shipped: 3, NextOffset: 8, Owner: &Owner{State: "running"}}},
	}
}

// subscribed is what the daemon says of the client, with a history of three days.
func subscribed(now bool, changes ...Change) []Subscription {
	return []Subscription{{Restaurant: "r", From: SourceState, LSN: "0/20", Subscribed: now, History: changes, Since: hours(-72), Floor: "0/1"}}
}

func appeared(at time.Time) Change { return Change{LSN: "0/10", Time: at} }

func gone(at time.Time) Change { return Change{Gone: true, LSN: "0/11", Time: at} }

// cutOffAt ends the campaign in its middle, at a position. The client subscribed while it was
// being sent.
func cutOffAt(t *testing.T, e *Evidence, position string) {
	t.Helper()
	r := &e.Campaigns[0]
	r.End, r.Finished, r.Cursor = hours(-0.5), hours(-0.5), cursor(t, position)
	e.Subscriptions = subscribed(true, appeared(hours(-0.75)))
}

// row gives the client a row that was decided a minute before noon.
func row(e *Evidence) {
	e.Feedback = &FeedbackRow{ID: "58", Restaurant: "r", Decided: noon.Add(-time.Minute)}
}

// Each verdict comes from evidence, with its reason, the command that would change it, and
// what is not known.
func TestExplain(t *testing.T) {
	t.Parallel()
	left := slices.Clone(Verdicts)
	for name, c := range map[string]struct {
		change func(*Evidence)
		want   Verdict
		why    string // a part of it
		next   string
		gap    string // a part of a gap; "": none may be there
	}{
		"row and record": {want: Notified, why: "decided at 2026-05-04T11:59:00Z, and in topic out since 2026-05-04T12:00:00Z", change: func(e *Evidence) {
			row(e)
			e.Record = &Record{Topic: "out", Partition: 2, Offset: 271, Time: noon}
		}},
		"row of another restaurant": {want: NotifiedEarlier, why: `already, for restaurant "r"`, change: func(e *Evidence) {
			row(e)
			e.Restaurant, e.Record = "r2", &Record{Topic: "out"}
		}},
		"late, and left": {want: Unsubscribed, why: "subscribed at 2026-05-04T11:00:00Z, behind its turn, and its subscription ended at 2026-05-04T11:30:00Z", change: func(e *Evidence) {
			e.LateSubscribers, e.Subscriptions = true, subscribed(false, gone(hours(-0.5)), appeared(hours(-1)))
		}},
		"late, and left, without late subscribers": {want: Unsubscribed, why: "behind its turn", change: func(e *Evidence) {
			e.Subscriptions = subscribed(false, gone(hours(-0.5)), appeared(hours(-1)))
		}},
		"joined again after an edit": {want: UnderWay, why: "looked at once more", change: func(e *Evidence) {
			e.LateSubscribers, e.Subscriptions = true, subscribed(true, appeared(hours(-1)))
			e.Campaigns[0].State, e.Campaigns[0].Version = "rejoin", 2
		}},
		"record not found": {want: Notified, why: "no record of it was found", gap: "retention", change: func(e *Evidence) {
			row(e)
			e.Search = &RecordSearch{Topic: "out", From: 1, To: 9, End: 9}
		}},
		"record beyond the bounds": {want: Notified, gap: "at its bounds", change: func(e *Evidence) {
			row(e)
			e.Search = &RecordSearch{Topic: "out", From: 1, To: 9, End: 90, Partial: true}
		}},
		"Kafka is gone, and the outbox does not hold it": {want: Notified, why: "does not hold it any more", gap: "Kafka", change: func(e *Evidence) {
			row(e)
			e.Gaps = []Gap{{Source: SourceRecord, What: "Kafka"}}
		}},
		"Kafka is gone, and the step is shipped": {want: Notified, why: "step 3 of lane 1 is among those that are shipped", gap: "Kafka", change: func(e *Evidence) {
			row(e)
			e.Step, e.Gaps = &Step{Lane: 1, Seq: 3, Shipped: 3}, []Gap{{Source: SourceRecord, What: "Kafka"}}
		}},
		"record that may not be read": {want: Notified, why: "does not hold it any more; its record could not be looked for: no Read", gap: "Kafka", change: func(e *Evidence) {
			row(e)
			e.Gaps = []Gap{{Source: SourceRecord, What: "Kafka", Cause: "no Read"}}
		}},
		"record, until the search failed": {want: Notified, why: "does not hold it any more; no record of it was found before the search failed: no Read", gap: "Kafka", change: func(e *Evidence) {
			row(e)
			e.Search, e.Gaps = &RecordSearch{Topic: "out", From: 1, To: 9, End: 90, Partial: true}, []Gap{{Source: SourceRecord, What: "Kafka", Cause: "no Read"}}
		}},
		"decided": {want: NotShipped, why: "lane 1 (stopped): no broker", change: func(e *Evidence) {
			row(e)
			e.Step, e.Lanes[0].Owner = &Step{Lane: 1, Seq: 4, Shipped: 3}, &Owner{State: "stopped", LastError: "no broker"}
		}},
		"decided a moment ago": {want: NotShipped, why: "within milliseconds", change: func(e *Evidence) {
			row(e)
			e.Step = &Step{Lane: 1, Seq: 4, Shipped: 3}
		}},
		"decided, the daemon has lost its lanes": {want: NotShipped, why: "owns no lane, and so not lane 1: the group refuses it", change: func(e *Evidence) {
			row(e)
			e.Step, e.Lanes[0].Owner, e.NoLanes = &Step{Lane: 1, Seq: 4, Shipped: 3}, nil, "the group refuses it"
		}},
		"decided, no daemon": {want: NotShipped, why: "no daemon that answers here owns lane 1", change: func(e *Evidence) {
			row(e)
			e.Step, e.Lanes[0].Owner = &Step{Lane: 1, Seq: 4, Shipped: 3}, nil
		}},
		"decided, progress unknown": {want: Unknown, why: "progress could not be read: no Read", gap: "Kafka", change: func(e *Evidence) {
			row(e)
			e.Step, e.Gaps = &Step{Lane: 1, Seq: 4, Shipped: -1}, []Gap{{Source: SourceRecord, What: "Kafka", Cause: "no Read"}}
		}},
		"decided, outbox unknown": {want: Unknown, why: "the outbox could not be read: no SELECT", gap: "no SELECT", change: func(e *Evidence) {
			row(e)
			e.Gaps = []Gap{{Source: SourceOutbox, What: "no SELECT", Cause: "no SELECT"}}
		}},
		"Postgres is gone": {want: Unknown, why: "could not be read: no SELECT", gap: "refused", change: func(e *Evidence) {
			e.Campaigns, e.Gaps = nil, []Gap{{Source: SourceFeedback, What: "refused", Cause: "no SELECT"}, {Source: SourceCampaign, What: "refused", Cause: "no SELECT"}}
		}},
		"not subscribed, dead letters unread": {want: NotSubscribed, why: "sent to every subscriber; the dead letters could not be read, so whether the client was left out is not known: no Read", gap: "Kafka", change: func(e *Evidence) {
			e.Gaps = []Gap{{Source: SourceDeadLetter, What: "Kafka", Cause: "no Read"}}
		}},
		"subscribed all the time, dead letters unread": {want: Unexplained, why: "has no row; the dead letters could not be read, so whether the client was left out is not known: no Read", gap: "Kafka", change: func(e *Evidence) {
			e.Subscriptions, e.Gaps = subscribed(true), []Gap{{Source: SourceDeadLetter, What: "Kafka", Cause: "no Read"}}
		}},
		"paused, dead letters unread": {want: Paused, gap: "Kafka", next: "resume", change: func(e *Evidence) {
			e.Campaigns[0].State, e.Gaps = "paused", []Gap{{Source: SourceDeadLetter, What: "Kafka", Cause: "no Read"}}
		}},
		"id too long": {want: ClientRefused, why: "2000 bytes", change: func(e *Evidence) { e.Misfit = "its id has 2000 bytes" }},
		"left out": {want: ClientRefused, why: "a constraint", change: func(e *Evidence) {
			e.Letters = []Letter{{LeftOut: true, Restaurant: "r", Reason: "others"}, {LeftOut: true, NamesClient: true, Restaurant: "r", Reason: "a constraint"}}
			e.Subscriptions = subscribed(true)
		}},

		"never subscribed":          {want: NotSubscribed, why: "since 2026-05-01T12:00:00Z", change: func(e *Evidence) { e.Subscriptions = subscribed(false) }},
		"subscribed behind it":      {want: SubscribedLate, why: "subscribed at 2026-05-04T11:00:00Z", next: "dinnerbell replay --from 2026-05-04T10:00:00Z", change: func(e *Evidence) { e.Subscriptions = subscribed(true, appeared(hours(-1))) }},
		"subscribed in the middle":  {want: SubscribedLate, why: "subscribed at 2026-05-04T10:03:00Z", next: "replay", change: func(e *Evidence) { e.Subscriptions = subscribed(true, appeared(hours(-1.95))) }},
		"subscribed behind its end": {want: SubscribedLate, why: "at or after the campaign's end", change: func(e *Evidence) { e.Now, e.Subscriptions = hours(4), subscribed(true, appeared(hours(3))) }},
		"subscribed again behind it": {want: SubscribedLate, why: "11:00:00Z", next: "replay", change: func(e *Evidence) {
			e.Subscriptions = subscribed(true, appeared(hours(-1)), gone(hours(-30)), appeared(hours(-40)))
		}},
		"unsubscribed before it":       {want: Unsubscribed, why: "ended at 2026-05-04T09:00:00Z", change: func(e *Evidence) { e.Subscriptions = subscribed(false, gone(hours(-3)), appeared(hours(-30))) }},
		"unsubscribed before its turn": {want: Unsubscribed, why: "ended at 2026-05-04T10:03:00Z", change: func(e *Evidence) { e.Subscriptions = subscribed(false, gone(hours(-1.95))) }},
		"late subscribers are served": {want: UnderWay, why: "as a late subscriber: lane 1 is running", change: func(e *Evidence) {
			e.LateSubscribers, e.Subscriptions = true, subscribed(true, appeared(hours(-1)))
		}},
		"one of two rows went":    {want: Unexplained, gap: "dinnerbell verify", change: func(e *Evidence) { e.Subscriptions = subscribed(true, gone(hours(-3)), appeared(hours(-30))) }},
		"subscribed all the time": {want: Unexplained, why: "has no row", gap: "dinnerbell verify", change: func(e *Evidence) { e.Subscriptions = subscribed(true) }},
		"no daemon, subscribed now": {want: SubscribedLate, why: "was sent to every subscriber", next: "replay", gap: "does not answer", change: func(e *Evidence) {
			e.Subscriptions = []Subscription{{Restaurant: "r", From: SourceTable, Table: "subs", Subscribed: true}}
		}},
		"no daemon, not subscribed now": {want: NotSubscribed, gap: "does not answer", change: func(e *Evidence) {
			e.Subscriptions = []Subscription{{Restaurant: "r", From: SourceTable, Table: "subs"}}
		}},
		"history is too short": {want: SubscribedLate, next: "replay", gap: "reaches back to 2026-05-04T11:00:00Z", change: func(e *Evidence) {
			e.Subscriptions = subscribed(true)
			e.Subscriptions[0].Since = hours(-1)
		}},
		"no history": {want: NotSubscribed, gap: "state.history", change: func(e *Evidence) {
			e.Subscriptions = subscribed(false)
			e.Subscriptions[0].Since = time.Time{}
		}},
		"subscriptions unknown": {want: NotSubscribed, gap: "with the daemon running", change: func(*Evidence) {}},

		"cut off": {want: CutOff, why: "ended at 2026-05-04T11:30:00Z", change: func(e *Evidence) {
			e.Campaigns[0].End, e.Campaigns[0].Finished, e.Subscriptions = hours(-0.5), hours(-0.5), subscribed(true)
		}},
		"cut off, not noted yet": {want: CutOff, change: func(e *Evidence) {
			e.Campaigns[0].End, e.Campaigns[0].State, e.Campaigns[0].Finished, e.Subscriptions = hours(-0.5), "pending", time.Time{}, subscribed(true)
		}},
		"cut off, perhaps subscribed": {want: CutOff, gap: "state.history", change: func(e *Evidence) {
			e.Campaigns[0].End, e.Campaigns[0].Finished, e.Subscriptions = hours(-0.5), hours(-0.5), subscribed(true)
			e.Subscriptions[0].Since = time.Time{}
		}},
		"cut off, subscribed ahead of the position": {want: CutOff, change: func(e *Evidence) {
			cutOffAt(t, e, "b")
		}},
		"cut off, subscribed behind the position": {want: SubscribedLate, why: "behind its turn", change: func(e *Evidence) {
			cutOffAt(t, e, "z")
		}},
		"parked, and over": {want: CutOff, why: "it was parked until then", change: func(e *Evidence) {
			e.Campaigns[0].End, e.Campaigns[0].State, e.Campaigns[0].Finished, e.Subscriptions = hours(-0.5), "parked", time.Time{}, subscribed(true)
		}},
		"paused, and over": {want: CutOff, why: "it was paused until then", change: func(e *Evidence) {
			e.Campaigns[0].End, e.Campaigns[0].State, e.Campaigns[0].Finished, e.Subscriptions = hours(-0.5), "paused", time.Time{}, subscribed(true)
		}},
		"cut off, not subscribed": {want: NotSubscribed, change: func(e *Evidence) {
			e.Campaigns[0].End, e.Campaigns[0].Finished, e.Subscriptions = hours(-0.5), hours(-0.5), subscribed(false)
		}},
		"the table refused it": {want: Refused, why: "no Latin-1", next: "dinnerbell dead-letters retry 0:3", change: func(e *Evidence) {
			e.Campaigns[0].Refusal = "no Latin-1"
			e.Letters = []Letter{{Offset: 3, From: "in", FromLane: 1, FromAt: 7, Reason: "no Latin-1", Restaurant: "r"}}
		}},
		"the table refused it, and the letter is gone": {want: Refused, why: "no Latin-1", next: "dinnerbell replay --from", change: func(e *Evidence) { e.Campaigns[0].Refusal = "no Latin-1" }},
		"the table refused it before a replay": {want: NotSubscribed, change: func(e *Evidence) {
			e.Letters, e.Subscriptions = []Letter{{Offset: 3, From: "in", FromLane: 1, FromAt: 7, Reason: "no Latin-1", Restaurant: "r"}}, subscribed(false)
		}},
		"the table refused it, and the row is older than the reasons": {want: Refused, why: "the feedback table refused the campaign at 2026-05-04T10:06:01Z: no Latin-1", next: "dinnerbell dead-letters retry 0:3", change: func(e *Evidence) {
			e.Campaigns[0].Notified = 0
			e.Letters = []Letter{{Offset: 3, From: "in", FromLane: 1, FromAt: 7, Reason: "no Latin-1", Restaurant: "r", Refused: hours(-1.9).Add(time.Second)}}
		}},
		"the table refused it, and a replay found nobody": {want: NotSubscribed, change: func(e *Evidence) {
			e.Campaigns[0].Notified = 0
			e.Letters = []Letter{{Offset: 3, From: "in", FromLane: 1, FromAt: 7, Reason: "no Latin-1", Restaurant: "r", Refused: hours(-3)}}
			e.Subscriptions = subscribed(false)
		}},
		"an edit was refused": {want: NotSubscribed, change: func(e *Evidence) {
			e.Letters, e.Subscriptions = []Letter{{Offset: 3, From: "in", FromLane: 1, FromAt: 9, Reason: "an edit"}}, subscribed(false)
		}},

		"expired": {want: Expired, why: "accepted at 2026-05-04T10:00:00Z", change: func(e *Evidence) {
			e.Campaigns[0].State, e.Campaigns[0].End = "expired", hours(-2.5)
		}},
		"cancelled by a message": {want: Cancelled, why: "the message at 1@7", change: func(e *Evidence) {
			e.Campaigns[0].State, e.Campaigns[0].End, e.Campaigns[0].Version = "expired", hours(-2.5), 2
		}},
		"cancelled by an operator": {want: Cancelled, why: "an operator has cancelled the campaign at 2026-05-04T11:00:00Z (cancel by ann)", change: func(e *Evidence) {
			e.Campaigns[0].State, e.Campaigns[0].Command, e.Campaigns[0].Commanded = "cancelled", "cancel by ann", hours(-1)
		}},
		"parked": {want: Parked, why: "its audience of 90", next: "dinnerbell approve c --restaurant r", change: func(e *Evidence) {
			n := int64(90)
			e.Campaigns[0].State, e.Campaigns[0].Audience = "parked", &n
		}},
		"paused":        {want: Paused, next: "dinnerbell resume c --restaurant r", change: func(e *Evidence) { e.Campaigns[0].State = "paused" }},
		"a later state": {want: Unexplained, why: `"frozen"`, change: func(e *Evidence) { e.Campaigns[0].State = "frozen" }},
		"scheduled":     {want: Scheduled, why: "starts at 2026-05-04T13:00:00Z", change: func(e *Evidence) { e.Campaigns[0].State, e.Campaigns[0].Start = "pending", hours(1) }},
		"scheduled, edited": {want: Scheduled, change: func(e *Evidence) {
			e.Campaigns[0].State, e.Campaigns[0].Start, e.Campaigns[0].Version, e.Campaigns[0].Notified = "pending", hours(1), 2, 0
		}},
		"replaced by an edit for later": {want: Replaced, why: "starts at 2026-05-04T13:00:00Z", change: func(e *Evidence) {
			e.Campaigns[0].State, e.Campaigns[0].Start, e.Campaigns[0].Version = "pending", hours(1), 2
		}},
		"replaced by an edit": {want: Replaced, why: "waits for its own", change: func(e *Evidence) {
			e.Campaigns[0].State, e.Campaigns[0].Version, e.Subscriptions = "pending", 2, subscribed(true)
		}},
		"resumed": {want: UnderWay, why: "looked at once more", change: func(e *Evidence) {
			e.Campaigns[0].State, e.Campaigns[0].Version, e.Campaigns[0].Commanded, e.Subscriptions = "pending", 2, hours(-1), subscribed(true)
		}},
		"under way, ahead": {want: UnderWay, why: `10 of 90 notified so far, position "j"), and the client lies ahead`, change: func(e *Evidence) {
			n := int64(90)
			e.Campaigns[0].Audience = &n
			e.Campaigns[0].State, e.Campaigns[0].Cursor, e.Subscriptions = "pending", cursor(t, "j"), subscribed(true)
		}},
		"under way, not subscribed": {want: NotSubscribed, why: "lies ahead", change: func(e *Evidence) {
			e.Campaigns[0].State, e.Campaigns[0].Cursor, e.Subscriptions = "pending", cursor(t, "j"), subscribed(false)
		}},
		"under way, unsubscribed": {want: Unsubscribed, why: "ended at 2026-05-04T11:00:00Z", change: func(e *Evidence) {
			e.Campaigns[0].State, e.Campaigns[0].Cursor, e.Subscriptions = "pending", cursor(t, "j"), subscribed(false, gone(hours(-1)))
		}},
		"under way, behind": {want: SubscribedLate, why: "subscribed at 2026-05-04T11:00:00Z behind its turn", next: "replay", change: func(e *Evidence) {
			e.Campaigns[0].State, e.Campaigns[0].Cursor, e.Subscriptions = "pending", cursor(t, "m"), subscribed(true, appeared(hours(-1)))
		}},
		"under way, behind, late subscribers": {want: UnderWay, why: "late subscriber", change: func(e *Evidence) {
			e.LateSubscribers = true
			e.Campaigns[0].State, e.Campaigns[0].Cursor, e.Subscriptions = "pending", cursor(t, "m"), subscribed(true, appeared(hours(-1)))
		}},
		"under way, behind, subscribed all the time": {want: Unexplained, gap: "dinnerbell verify", change: func(e *Evidence) {
			e.Campaigns[0].State, e.Campaigns[0].Cursor, e.Subscriptions = "pending", cursor(t, "m"), subscribed(true)
		}},
		"under way, subscriptions unknown": {want: UnderWay, gap: "whether the client is subscribed", change: func(e *Evidence) {
			e.Campaigns[0].State, e.Campaigns[0].Cursor = "pending", cursor(t, "j")
		}},
		"waits for freshness": {want: UnderWay, why: "waits for fresh subscriptions", change: func(e *Evidence) {
			e.Campaigns[0].State, e.Lanes[0].Owner.Waiting, e.Subscriptions = "rejoin", true, subscribed(true)
		}},

		"unknown": {want: CampaignUnknown, change: func(e *Evidence) { e.Campaigns = nil }},
		"unknown, and the topic is out of reach": {want: CampaignUnknown, why: "no message of the campaign is known to be accepted; the campaigns topic could not be searched: no Read", gap: "Kafka", change: func(e *Evidence) {
			e.Campaigns, e.Gaps = nil, []Gap{{Source: SourceMessage, What: "Kafka", Cause: "no Read"}}
		}},
		"unknown, and both topics are out of reach": {want: CampaignUnknown, why: "so whether the message was refused is not known: no Read; the campaigns topic could not be searched: no Read", gap: "Kafka", change: func(e *Evidence) {
			e.Campaigns, e.Gaps = nil, []Gap{{Source: SourceDeadLetter, What: "Kafka", Cause: "no Read"}, {Source: SourceMessage, What: "Kafka", Cause: "no Read"}}
		}},
		"other restaurants": {want: CampaignUnknown, why: `none of the id "r2"`, change: func(e *Evidence) { e.Restaurant = "r2" }},
		"refused": {want: Refused, why: "the message at 1@5 was refused: end before start", next: "retry 2:9", change: func(e *Evidence) {
			e.Campaigns, e.Letters = nil, []Letter{{Partition: 2, Offset: 9, From: "in", FromLane: 1, FromAt: 5, Reason: "end before start"}}
		}},
		"refused, and would be again": {want: Refused, why: "a corrected message", change: func(e *Evidence) {
			e.Campaigns, e.Letters = nil, []Letter{{Partition: 2, Offset: 9, From: "in", FromLane: 1, FromAt: 5, Reason: "end before start", Invalid: true}}
		}},
		"not read": {want: NotRead, why: "lane 1 (halted): cut", change: func(e *Evidence) {
			e.Campaigns, e.Messages, e.Lanes[0].Owner = nil, []Message{{Partition: 1, Offset: 9, Unread: true, Restaurant: "r"}}, &Owner{State: "halted", LastError: "cut"}
		}},
		"not read, the daemon has lost its lanes": {want: NotRead, why: "owns no lane, and so not lane 1: the group refuses it", change: func(e *Evidence) {
			e.Campaigns, e.Messages, e.Lanes[0].Owner, e.NoLanes = nil, []Message{{Partition: 1, Offset: 9, Unread: true, Restaurant: "r"}}, nil, "the group refuses it"
		}},
		"not read, will be refused": {want: NotRead, why: "will be refused: no end", change: func(e *Evidence) {
			e.Campaigns, e.Messages = nil, []Message{{Partition: 1, Offset: 9, Unread: true, Invalid: "no end"}}
		}},
		"before kafka.start": {want: BeforeDeployment, why: "lies before kafka.start", next: "replay", change: func(e *Evidence) {
			e.Campaigns, e.Start, e.Messages = nil, "2026-05-04T11:00:00Z", []Message{{Partition: 1, Offset: 3, Time: hours(-2), End: hours(2)}}
		}},
		"before the first position": {want: BeforeDeployment, why: "kafka.start is latest", next: "replay", change: func(e *Evidence) {
			e.Campaigns, e.Start, e.Messages = nil, "latest", []Message{{Partition: 1, Offset: 3, Time: hours(-2), End: hours(2)}}
		}},
		"row deleted": {want: Unexplained, why: "kept for seven days", gap: "log", change: func(e *Evidence) {
			e.Campaigns, e.Start, e.Messages = nil, "latest", []Message{{Partition: 1, Offset: 3, Time: hours(-400), End: hours(-200)}}
		}},
		"skipped": {want: Unexplained, why: "no row of it", next: "replay", gap: "--accept-missing", change: func(e *Evidence) {
			e.Campaigns, e.Messages = nil, []Message{{Partition: 1, Offset: 3, Time: hours(-2), End: hours(2)}}
		}},
		"two restaurants, subscribed to one": {want: SubscribedLate, why: "11:00:00Z", next: "replay", change: func(e *Evidence) {
			other := e.Campaigns[0]
			other.Restaurant = "q"
			e.Campaigns = append([]CampaignRow{other}, e.Campaigns...)
			e.Subscriptions = append(subscribed(true, appeared(hours(-1))), Subscription{Restaurant: "q", From: SourceState, Since: hours(-72)})
		}},
	} {
		left = slices.DeleteFunc(left, func(v Verdict) bool { return v == c.want })
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := finished()
			c.change(e)
			x := Explain(e)
			if x.Verdict != c.want || !strings.Contains(x.Why, c.why) {
				t.Errorf("%s: %s; want %s with %q", x.Verdict, x.Why, c.want, c.why)
			}
			if !strings.Contains(x.Next, c.next) || c.next == "" && x.Next != "" {
				t.Errorf("next: %q, want %q", x.Next, c.next)
			}
			gaps := ""
			for _, g := range x.NotKnown {
				gaps += g.What + ": " + g.Tell + "\n"
			}
			if !strings.Contains(gaps, c.gap) || c.gap == "" && gaps != "" {
				t.Errorf("not known: %q, want %q", gaps, c.gap)
			}
			wantNotified := c.want == Notified || c.want == NotifiedEarlier
			if c.want == Unknown && x.Notified != nil || c.want != Unknown && (x.Notified == nil || *x.Notified != wantNotified) {
				t.Errorf("notified: %v", x.Notified)
			}
			for _, l := range x.Evidence {
				if l.Source == "" || l.Place == "" || l.What == "" {
					t.Errorf("a line without its source: %+v", l)
				}
			}
		})
	}
	if len(left) > 0 {
		t.Errorf("without a case: %v", left)
	}
}

func TestJSONIsStable(t *testing.T) {
	t.Parallel()
	e := finished()
	row(e)
	e.Record = &Record{Topic: "out", Partition: 2, Offset: 271, Time: noon}
	text, err := json.Marshal(Explain(e))
	const want = `{"campaign":"c","client":"k","restaurant":"r","verdict":"notified","notified":true,"why":"decided at 2026-05-04T11:59:00Z, and in topic out since 2026-05-04T12:00:00Z","evidence":[` +
		`{"source":"feedback","place":"row 58 of feedback","what":"decided for restaurant \"r\"; no feedback yet","time":"2026-05-04T11:59:00Z"},` +
		`{"source":"record","place":"out/2@271","what":"the notification, as readers of committed records see it","time":"2026-05-04T12:00:00Z"},`
	if err != nil || !strings.HasPrefix(string(text), want) || !strings.HasSuffix(string(text), `"not_known":[]}`) {
		t.Errorf("%v\n%s\nwant\n%s", err, text, want)
	}
}

// A lane's row names its last shipped step with the next decision, and the daemon that owns
// the lane knows it at once.
func TestLineOfALane(t *testing.T) {
	t.Parallel()
	for want, lane := range map[string]Lane{
		"step 5 is decided, up to step 5 is shipped, ":          {Decided: 5, Shipped: 4, Owner: &Owner{State: "running", Shipped: 5}},
		"step 6 is decided, up to step 6 is shipped, ":          {Decided: 6, Shipped: 6},
		"step 7 is decided, at least up to step 6 is shipped, ": {Decided: 7, Shipped: 6},
		"step 8 is decided, at least up to step 7 is shipped, ": {Decided: 8, Shipped: 7, Owner: &Owner{State: "takeover"}},
	} {
		var l lineList
		addLaneLine(&l, &lane)
		if !strings.HasPrefix(l.list[0].What, want) {
			t.Errorf("%+v: %s; want %s", lane, l.list[0].What, want)
		}
	}
}
