package stream

import (
	"context"
	"slices"
	"sync"
	"time"

	"dinnerbell/stream/campaign"
)

// stepTries is how often a step is repeated because of other lanes. Then the session
// ends, and the next one reads everything anew.
const stepTries = 16

// correctedKeys are campaigns that a step was wrong about: the decider must forget
// their messages.
type correctedKeys struct {
	mu   sync.Mutex
	keys []campaign.Key
}

func (c *correctedKeys) add(keys ...campaign.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys = append(c.keys, keys...)
}

func (c *correctedKeys) takeAll() (keys []campaign.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	keys, c.keys = c.keys, nil
	return keys
}

// reconcileStep judges a step's messages again after its transaction was rolled back
// because a campaign's row was not as expected: another lane or an operator has
// changed the row since it was looked up. A campaign that has lost its row leaves the
// step with its clients. A message that wins all the same becomes a pending row, which
// comes back through the start times.
func (c *committer) reconcileStep(ctx context.Context, st *step) error {
	ctx, cancel := context.WithTimeout(ctx, c.claim.Config.SinkTimeout)
	defer cancel()
	keys := make([]campaign.Key, 0, len(st.rows))
	for k := range st.rows {
		keys = append(keys, k)
	}
	now := time.Now().Unix()
	if err := readKnown(ctx, c.claim.Tables, c.claim.Conn, keys, func(k campaign.Key, there *campaign.Version, _ bool) {
		r := st.rows[k]
		if r.accept || r.repeats {
			c.reconcileMessage(st, r, there, now)
		} else if there == nil || there.RowVersion != r.version || there.Owner != r.owner {
			c.loseCampaign(st, r)
			delete(st.rows, k)
		}
	}); err != nil {
		return err
	}
	// Campaigns that this lane still delivers come back, with their cursors.
	c.starts.allowReload(st.lost)
	list, err := readStarts(ctx, c.claim.Tables, c.claim.Conn, c.lane.id, slices.DeleteFunc(slices.Clone(st.lost), func(k campaign.Key) bool { return st.rows[k] != nil && st.rows[k].accept }))
	if err != nil {
		return err
	}
	c.starts.addLoaded(time.Now(), list)
	return nil
}

// reconcileMessage reconciles a row that holds a message of the step; there is the
// version that the campaign table holds now, nil if none.
func (c *committer) reconcileMessage(st *step, r *campaignRow, there *campaign.Version, now int64) {
	if campaign.SameRow(r.replaces, there) && (r.accept || there.RowVersion == r.version && (r.state == "" || there.Owner == r.owner)) {
		return
	}
	this := r.acceptedVersion()
	outcome := campaign.Judge(campaign.Message{
		Position: this.Position, Time: this.Time, Fingerprint: this.Fingerprint, End: r.End,
		Replayed: r.window != nil && there != nil && there.Position == this.Position,
	}, there, now)
	if r.state == stateExpired {
		st.expired--
	}
	c.loseCampaign(st, r)
	r.served, r.state, r.cursor, r.replaces = false, "", "", there
	switch outcome {
	case campaign.Older:
		delete(st.rows, r.Key())
		st.noteOlder(r.Campaign, this, *there)
	case campaign.Repeat:
		r.accept, r.repeats = false, true
		r.liveCampaign = &liveCampaign{Campaign: r.Campaign, owner: there.Owner, version: there.RowVersion}
	default:
		r.accept, r.repeats, r.state = true, false, statePending
		r.liveCampaign = &liveCampaign{Campaign: r.Campaign, from: r.at, owner: c.lane.id, version: 1}
		if there != nil {
			r.version = there.RowVersion + 1
		}
		r.contested.Store(there != nil)
		if outcome == campaign.Expired || outcome == campaign.Cancel {
			r.state = stateExpired
			st.expired++
		}
	}
}

// loseCampaign removes a row's clients from the step, and makes the decider and the
// steps behind leave the campaign alone.
func (c *committer) loseCampaign(st *step, r *campaignRow) {
	r.lost.Store(true)
	st.dropCampaign(r.liveCampaign)
	c.corrected.add(r.Key())
}
