package campaign

// Position is where a message lies in the campaigns topic.
type Position struct {
	Lane   int32
	Offset int64
}

// Version is the newest accepted message of a campaign, as its row in the campaign
// table holds it or as a step is about to write it.
type Version struct {
	Position
	Time        int64 // milliseconds, as Kafka gave it
	Fingerprint Fingerprint
	RowVersion  int64 // version counter of the row: each change of the campaign raises it
	Owner       int32 // the lane that delivers it

	Hold     Hold
	HeldAt   int64 // milliseconds; of an operator's cancel
	Approved bool  // an operator let it go although its audience exceeds the limit
}

// Hold is what keeps a campaign from being delivered, whatever its times are.
type Hold int

// The holds.
const (
	NotHeld   Hold = iota
	Parked         // its audience exceeds the limit; it waits for an operator
	Paused         // an operator stopped it for a while
	Cancelled      // an operator stopped it for good
)

// stopsFor reports whether an operator's cancel stands against the message: only other
// content that was sent after the cancel revives the campaign.
func (k *Version) stopsFor(m *Message) bool {
	return k != nil && k.Hold == Cancelled && (m.Time <= k.HeldAt || m.Fingerprint == k.Fingerprint)
}

// Message is a message of the campaigns topic as Judge compares it.
type Message struct {
	Position
	Time        int64 // milliseconds, as Kafka gave it
	Fingerprint Fingerprint
	End         int64 // Unix second from which the campaign is over

	// Distinct: the message takes the place of the accepted version even where both
	// have the same content.
	Distinct bool
	// Replayed: a replay has read the message again; it did not arrive now.
	Replayed bool
	// Superseded: the topic holds a newer message of the campaign. Of replays alone.
	Superseded bool
}

// Version returns the version that is accepted with the message, as far as the message
// determines it.
func (m *Message) Version() Version {
	return Version{Position: m.Position, Time: m.Time, Fingerprint: m.Fingerprint}
}

// Outcome is the effect of a message on its campaign.
type Outcome int

// The outcomes of Judge.
const (
	First   Outcome = iota // it is the campaign's first message, and is accepted
	Edit                   // it replaces the accepted message
	Cancel                 // it replaces the accepted message and ends the campaign: its end has passed
	Expired                // it notifies nobody: its end has passed, and there is nothing that it could cancel
	Repeat                 // it has the content of the accepted message: only position and time move
	Older                  // it does nothing: a newer message is accepted, or in the topic
	Again                  // it is the accepted message itself, replayed
	Revive                 // it replaces the accepted message of a campaign that an operator cancelled
	Held                   // it replaces the accepted message, and the campaign stays paused
	Stands                 // it does nothing: an operator's cancel stands, or a replay meets a campaign that is held
)

// String names the outcome.
func (o Outcome) String() string {
	return [...]string{"first", "edit", "cancel", "expired", "repeat", "older", "again", "revive", "held", "stands"}[o]
}

// Judge decides the effect of message m on its campaign. accepted is the version that
// is accepted so far, nil if there is no such version; now is a Unix second. The newest
// message wins, an identical repeat does nothing, and a campaign is over from its end on.
// A campaign that an operator cancelled stays cancelled, unless a message with other
// content was sent after the cancel; a paused one stays paused with its new content.
//
// Of two messages with the same time on two partitions, neither is newer. One that
// arrives is accepted; one that a replay reads again leaves the accepted one alone.
func Judge(m Message, accepted *Version, now int64) Outcome {
	over := m.End <= now
	switch {
	case m.Replayed:
		return judgeReplayed(m, accepted, over)
	case accepted == nil && over:
		return Expired
	case accepted == nil:
		return First
	case !Newer(m.Version(), *accepted):
		return Older
	case !m.Distinct && m.Fingerprint == accepted.Fingerprint:
		return Repeat
	case accepted.stopsFor(&m):
		return Stands
	case over:
		return Cancel
	}
	return replace(accepted)
}

// replace is the outcome of a message that takes the place of the accepted one.
func replace(accepted *Version) Outcome {
	switch accepted.Hold {
	case Cancelled:
		return Revive
	case Paused:
		return Held
	default: // a parked campaign's audience is counted again
		return Edit
	}
}

// judgeReplayed is Judge for a message that a replay has read again: it joins the
// campaign once more, so the same content is no repeat.
func judgeReplayed(m Message, accepted *Version, over bool) Outcome {
	again := accepted != nil && accepted.Position == m.Position
	wins := !m.Superseded && (accepted == nil || again || SurelyNewer(m.Version(), *accepted))
	switch {
	case over && wins && accepted != nil && !again && !accepted.stopsFor(&m):
		return Cancel
	case over:
		return Expired
	case !wins:
		return Older
	case accepted.stopsFor(&m), again && accepted.Hold != NotHeld:
		return Stands
	case again:
		return Again
	case accepted == nil:
		return First
	}
	return replace(accepted)
}

// Newer reports whether message a comes after message b of the same campaign: by
// offset on one partition, by the record's time across partitions, where nothing
// else orders them. Of two messages with the same time on two partitions, each is
// newer than the other.
func Newer(a, b Version) bool {
	if a.Lane == b.Lane {
		return a.Offset > b.Offset
	}
	return a.Time >= b.Time
}

// SurelyNewer is Newer without ties: of two messages with the same time on two
// partitions, neither is newer.
func SurelyNewer(a, b Version) bool { return Newer(a, b) && !Newer(b, a) }

// After reports whether k is a later state of the campaign's row than other. A
// repeat leaves the row's version alone, so the message decides where versions
// are equal.
func (k Version) After(other Version) bool {
	if k.RowVersion != other.RowVersion {
		return k.RowVersion > other.RowVersion
	}
	return Newer(k, other)
}

// SameRow reports whether a row is as it was expected to be; nil stands for no row.
func SameRow(a, b *Version) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.RowVersion == b.RowVersion && a.Position == b.Position
}
