package campaign

// Position is where a message lies in the campaigns topic.
type Position struct {
	Lane   int32
	Offset int64
}

// Version is a campaign's newest message, as its row in the campaign table holds
// it or as a step is about to write it.
type Version struct {
	Position
	Time        int64 // milliseconds, as Kafka gave it
	Fingerprint Fingerprint
	RowVersion  int64 // of the row: each change of what the campaign is raises it
	Owner       int32 // the lane that delivers it
}

// Outcome is what a message means for its campaign.
type Outcome int

// The outcomes of Judge.
const (
	First  Outcome = iota // nothing was known of the campaign
	Edit                  // the message takes the place of the one before
	Repeat                // the same content once more: only the position and the time move
	Older                 // a newer message stands; this one does nothing
)

// Judge applies "the newest message of one campaign wins": m is the message,
// before the newest one that is known, nil if none is.
func Judge(m Version, before *Version) Outcome {
	switch {
	case before == nil:
		return First
	case !Newer(m, *before):
		return Older
	case m.Fingerprint == before.Fingerprint:
		return Repeat
	}
	return Edit
}

// Newer tells whether message a comes after message b of the same campaign: by
// offset on one partition, by the record's time across partitions, where
// nothing else orders them.
func Newer(a, b Version) bool {
	if a.Lane == b.Lane {
		return a.Offset > b.Offset
	}
	return a.Time >= b.Time
}

// SurelyNewer is newer, but that of two messages of one time on two partitions
// neither is: what stands, stands.
func SurelyNewer(a, b Version) bool { return Newer(a, b) && !Newer(b, a) }

// After tells which of two states of one campaign's row is the later one. A
// repeat leaves the row's version alone, so the message decides where versions
// are equal.
func (k Version) After(other Version) bool {
	if k.RowVersion != other.RowVersion {
		return k.RowVersion > other.RowVersion
	}
	return Newer(k, other)
}

// SameRow tells that a row is as it was expected to be; nil stands for no row.
func SameRow(a, b *Version) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.RowVersion == b.RowVersion && a.Position == b.Position
}
