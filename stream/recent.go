package stream

import (
	"dinnerbell/stream/campaign"
)

// recentMessages are the messages that the decider has accepted lately. They are newer
// than the result of a look-up that was made before the accepting step was committed.
// An entry that is forgotten too early costs a repeated step, never a message. The
// entry with the oldest last use is forgotten first: a campaign whose newest message
// is in flight must not be forgotten because its first message was long ago.
type recentMessages struct {
	limit int
	byKey map[campaign.Key]recentMessage
	uses  []recentUse // oldest first; uses that byKey does not name are void
	count int64
}

type recentMessage struct {
	campaign.Version
	use int64
}

type recentUse struct {
	key campaign.Key
	use int64
}

func newRecentMessages(limit int) *recentMessages {
	return &recentMessages{limit: limit, byKey: map[campaign.Key]recentMessage{}}
}

// get returns the remembered version of a campaign, or nil.
func (r *recentMessages) get(k campaign.Key) *campaign.Version {
	if e, ok := r.byKey[k]; ok {
		return &e.Version
	}
	return nil
}

func (r *recentMessages) put(k campaign.Key, n campaign.Version) {
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

func (r *recentMessages) forget(k campaign.Key) { delete(r.byKey, k) }
