package stream

import (
	"time"

	"dinnerbell/stream/campaign"
)

// maxReplayLive is how many replayed campaigns a lane has in the middle of their
// fan-out at once. They share each step with the lane's own long campaigns, so
// a replay of many large ones does not push these aside.
const maxReplayLive = 4

// judgeReplayed judges a message that a replay has read again.
func (m *message) judgeReplayed(lane int32, accepted *campaign.Version, now int64) campaign.Outcome {
	judged := m.forJudge(lane)
	judged.Replayed = true
	return campaign.Judge(judged, accepted, now)
}

// joinsAgain reports whether a replay has its lane accept the message, once more or
// at last. A campaign that is accepted and waits for its start needs nothing.
func (m *message) joinsAgain(outcome campaign.Outcome, now int64) bool {
	switch outcome {
	case campaign.First, campaign.Edit, campaign.Cancel:
		return true
	case campaign.Again:
		return m.campaign.Start <= now
	default:
		return false
	}
}

// addOutcome counts a campaign's message; ahead says that its start lies ahead.
func (c *ReplayCounts) addOutcome(outcome campaign.Outcome, ahead bool) {
	c.Messages++
	switch {
	case outcome == campaign.Expired, outcome == campaign.Cancel:
		c.Expired++
	case outcome == campaign.Older:
		c.Superseded++
	case ahead:
		c.Scheduled++
	default:
		c.Valid++
	}
}

// acceptReplayed accepts the next message that a replay brings. Those that have
// just arrived go first, and it never moves next_offset. The look-up may be
// older than what this lane accepted since, so the message is judged anew.
func (d *decider) acceptReplayed(st *step) bool {
	if len(d.replayed) == 0 || !d.hasRoom() || d.sched.replayed >= maxReplayLive || !st.canAccept(&d.replayed[0]) {
		return false
	}
	m := d.replayed[0]
	d.replayed = d.replayed[1:]
	before := d.newestAccepted(st, &m)
	now := time.Now().Unix()
	outcome := m.judgeReplayed(d.lane.id, before, now)
	if m.window.isCancelled() || !m.joinsAgain(outcome, now) {
		if m.delivered != "" {
			d.delivered.forget(m.delivered)
		}
		m.window.markDone()
		return true
	}
	st.size += m.campaign.Size()
	d.acceptCampaign(st, &m, before, outcome)
	st.windows = append(st.windows, m.window)
	return true
}
