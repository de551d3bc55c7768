package stream

import (
	"time"

	"dinnerbell/stream/campaign"
)

// replayLive is how many replayed campaigns a lane has in the middle of their
// fan-out at once. They share each step with the lane's own long campaigns, so
// a replay of many large ones does not push these aside.
const replayLive = 4

// verdict is what a replay does with a campaign's message.
type verdict int

const (
	replayExpired    verdict = iota // nothing: its end has passed
	replaySuperseded                // nothing: a newer message is there
	replayScheduled                 // nothing: it waits for its start
	replayJoin                      // it is accepted, again or at last
	replayCancel                    // it was never accepted, and ends what is there
)

// verdict compares the message with what is known of its campaign: before, nil
// if nothing.
func (m *message) verdict(lane int32, before *campaign.Version, now int64) verdict {
	this := campaign.Version{Position: campaign.Position{Lane: lane, Offset: m.offset}, Time: m.time}
	same := before != nil && before.Position == this.Position
	wins := !m.replaced && (before == nil || same || campaign.SurelyNewer(this, *before))
	switch {
	case m.campaign.End <= now && before != nil && !same && wins:
		return replayCancel
	case m.campaign.End <= now:
		return replayExpired
	case !wins:
		return replaySuperseded
	case same && m.campaign.Start > now:
		return replayScheduled
	}
	return replayJoin
}

// note counts a campaign.
func (c *ReplayCounts) note(v verdict, ahead bool) {
	c.Messages++
	switch {
	case v == replayExpired, v == replayCancel:
		c.Expired++
	case v == replaySuperseded:
		c.Superseded++
	case ahead:
		c.Scheduled++
	default:
		c.Valid++
	}
}

// acceptReplayed accepts the next message that a replay brings. Those that have
// just arrived go first, and it never moves next_offset. The look-up may be
// older than what this lane accepted since, so the verdict is made anew.
func (d *decider) acceptReplayed(st *step) bool {
	if len(d.replayed) == 0 || !d.hasRoom() || d.sched.replayed >= replayLive || !st.canAccept(&d.replayed[0]) {
		return false
	}
	m := d.replayed[0]
	d.replayed = d.replayed[1:]
	before := d.newestAccepted(st, &m)
	v := replaySuperseded
	if !m.feed.gone() {
		v = m.verdict(d.lane.id, before, time.Now().Unix())
	}
	if v != replayJoin && v != replayCancel {
		if m.delivered != "" {
			d.delivered.forget(m.delivered)
		}
		m.feed.settle()
		return true
	}
	st.size += m.campaign.Size()
	d.acceptCampaign(st, &m, before)
	st.feeds = append(st.feeds, m.feed)
	return true
}
