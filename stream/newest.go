package stream

// position is where a message lies in the campaigns topic.
type position struct {
	lane   int32
	offset int64
}

// known is a campaign's newest message, as its row in the campaign table holds
// it or as a step is about to write it.
type known struct {
	position
	time        int64 // milliseconds, as Kafka gave it
	fingerprint fingerprint
	version     int64 // of the row: each change of what the campaign is raises it
	owner       int32 // the lane that delivers it
}

// judgement is what a message means for its campaign.
type judgement int

// Judgements.
const (
	judgedFirst  judgement = iota // nothing was known of the campaign
	judgedEdit                    // the message takes the place of the one before
	judgedRepeat                  // the same content once more: only the position and the time move
	judgedOlder                   // a newer message stands; this one does nothing
)

// judge applies "the newest message of one campaign wins": m is the message,
// before the newest one that is known, nil if none is.
func judge(m known, before *known) judgement {
	switch {
	case before == nil:
		return judgedFirst
	case !newer(m, *before):
		return judgedOlder
	case m.fingerprint == before.fingerprint:
		return judgedRepeat
	}
	return judgedEdit
}

// newer tells whether message a comes after message b of the same campaign: by
// offset on one partition, by the record's time across partitions, where
// nothing else orders them.
func newer(a, b known) bool {
	if a.lane == b.lane {
		return a.offset > b.offset
	}
	return a.time >= b.time
}

// surelyNewer is newer, but that of two messages of one time on two partitions
// neither is: what stands, stands.
func surelyNewer(a, b known) bool { return newer(a, b) && !newer(b, a) }

// after tells which of two states of one campaign's row is the later one. A
// repeat leaves the row's version alone, so the message decides where versions
// are equal.
func (k known) after(other known) bool {
	if k.version != other.version {
		return k.version > other.version
	}
	return newer(k, other)
}

// sameState tells that a row is as it was expected to be; nil stands for no row.
func sameState(a, b *known) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.version == b.version && a.position == b.position
}
