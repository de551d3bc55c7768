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

// recentMessages is what decide has accepted lately: newer than what a look-up
// found that was made before the accepting step was committed. An entry that is
// forgotten too early costs a step that is done again, never a message. Which
// one is forgotten goes by its last use: a campaign whose newest message is
// still under way must not go because its first one was long ago.
type recentMessages struct {
	limit int
	byKey map[key]recentMessage
	uses  []recentUse // oldest first; those that byKey does not name are void
	count int64
}

type recentMessage struct {
	known
	use int64
}

type recentUse struct {
	key key
	use int64
}

func newRecentMessages(limit int) *recentMessages {
	return &recentMessages{limit: limit, byKey: map[key]recentMessage{}}
}

// get returns nil where nothing is remembered.
func (r *recentMessages) get(k key) *known {
	if e, ok := r.byKey[k]; ok {
		return &e.known
	}
	return nil
}

func (r *recentMessages) put(k key, n known) {
	r.count++
	r.byKey[k] = recentMessage{n, r.count}
	r.uses = append(r.uses, recentUse{k, r.count})
	for len(r.uses) > r.limit {
		oldest := r.uses[0]
		r.uses[0], r.uses = recentUse{}, r.uses[1:]
		if r.byKey[oldest.key].use == oldest.use {
			delete(r.byKey, oldest.key)
		}
	}
}

func (r *recentMessages) forget(k key) { delete(r.byKey, k) }
