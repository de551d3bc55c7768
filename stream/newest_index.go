package stream

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"github.com/twmb/franz-go/pkg/kadm"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/topic/fetch"
)

// indexCampaigns bounds the campaigns of one index: some 20 MB. A replay whose range
// holds more campaigns that are still valid goes through them in several hash ranges.
const indexCampaigns = 1 << 17

// hashRange is a part of all campaigns: those whose id's hash begins with the lowest bits
// of prefix. The zero hashRange is all campaigns.
type hashRange struct {
	bits   int
	prefix uint64
}

// contains reports whether the campaign is in the range.
func (s hashRange) contains(d campaign.Digest) bool {
	return s.bits == 0 || binary.BigEndian.Uint64(d[:8])>>(64-s.bits) == s.prefix
}

// split cuts the range into two halves.
func (s hashRange) split() (hashRange, hashRange) {
	return hashRange{s.bits + 1, s.prefix << 1}, hashRange{s.bits + 1, s.prefix<<1 | 1}
}

// isFirst reports whether the range is the first of its replay, which also counts the
// messages without a campaign id.
func (s hashRange) isFirst() bool { return s.prefix == 0 }

// newestIndex holds the newest message in the topic for each campaign of a hash range
// that has a valid message in the replayed offsets.
type newestIndex struct {
	hashRange
	byDigest map[campaign.Digest]campaign.Version
	limit    int // of byDigest

	// audiences are a dry run's names in the delivered cache for campaigns of several
	// restaurants, by campaign id.
	audiences map[string]id.ID

	mu     sync.Mutex
	shared map[uint64]bool // campaigns with several restaurants; true once its clients are counted
}

// addMessage notes a message unless the index has a newer one. It returns false where the
// message is over and the index has no other message of its campaign.
func (p *newestIndex) addMessage(d campaign.Digest, m campaign.Message, now int64) bool {
	m.Distinct = true
	var newest *campaign.Version
	if n, ok := p.byDigest[d]; ok {
		newest = &n
	}
	switch campaign.Judge(m, newest, now) {
	case campaign.Expired:
		return false
	case campaign.Older:
	default:
		p.byDigest[d] = m.Version()
	}
	return true
}

// isSuperseded reports whether the topic has a newer message of the campaign.
func (p *newestIndex) isSuperseded(d campaign.Digest, m campaign.Version) bool {
	n, ok := p.byDigest[d]
	return ok && campaign.SurelyNewer(n, m)
}

// markCounted reports whether the campaign's clients are still to be counted, and marks a
// campaign of several restaurants as counted.
func (p *newestIndex) markCounted(d campaign.Digest) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	counted, ok := p.shared[d.Campaign()]
	if ok {
		p.shared[d.Campaign()] = true
	}
	return !counted
}

// hasSeveralRestaurants reports whether the index has messages of the campaign for several
// restaurants.
func (p *newestIndex) hasSeveralRestaurants(d campaign.Digest) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.shared[d.Campaign()]
	return ok
}

// indexNewest reads the range of every lane, whichever daemon owns the lane. First it
// collects the campaigns that have a valid message. Then it looks for newer messages of
// these campaigns, up to each lane's next offset and from the time of the first valid
// message on: a cancel behind the range or on another partition counts. If the hash range
// has too many campaigns, indexNewest cuts it and returns the other parts in rest.
func (r *replay) indexNewest(ctx context.Context, s hashRange) (_ *newestIndex, rest []hashRange, err error) {
	p := &newestIndex{hashRange: s, byDigest: map[campaign.Digest]campaign.Version{}, limit: r.svc.indexCampaigns, audiences: map[string]id.ID{}}
	work := r.newIndexProgress()
	sent := int64(math.MaxInt64)
	for _, rg := range r.ranges {
		err := r.readOffsets(ctx, rg.lane, rg.from, rg.until, func(rec *fetch.Record) error {
			work.addDone(1)
			m, d, ok := r.parseIndexed(rec, p)
			if !ok {
				return nil
			}
			if !p.addMessage(d, m.forJudge(rg.lane), r.svc.now().Unix()) {
				return nil
			}
			sent = min(sent, m.time)
			for len(p.byDigest) > p.limit {
				rest = append([]hashRange{p.halveRange()}, rest...)
			}
			return nil
		})
		if err != nil {
			return nil, nil, fmt.Errorf("index the range: %w", err)
		}
	}
	if len(p.byDigest) > 0 {
		if err := r.lookForNewer(ctx, p, sent, work); err != nil {
			return nil, nil, fmt.Errorf("index the range: %w", err)
		}
	}
	p.findShared()
	return p, rest, nil
}

// lookForNewer adds newer messages behind the range and on other partitions to the index.
func (r *replay) lookForNewer(ctx context.Context, p *newestIndex, sent int64, work *indexProgress) error {
	name := r.svc.cfg.Kafka.Campaigns
	after, err := kadm.NewClient(r.client).ListOffsetsAfterMilli(ctx, sent, name)
	if err != nil {
		return r.explainUnlisted(err)
	}
	for _, rg := range r.ranges {
		from := rg.until // a single lane's range is read completely already
		if len(r.ranges) > 1 {
			from = rg.from
			if o, ok := after.Lookup(name, rg.lane); ok && o.Err == nil {
				from = max(rg.start, min(from, o.Offset))
			}
		}
		work.addTotal(rg.next - from)
		err := r.readOffsets(ctx, rg.lane, from, rg.next, func(rec *fetch.Record) error {
			work.addDone(1)
			if m, d, ok := r.parseIndexed(rec, p); ok {
				if _, ok := p.byDigest[d]; ok {
					p.addMessage(d, m.forJudge(rg.lane), r.svc.now().Unix())
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// parseIndexed parses a record. It returns false for a record that is no campaign of the
// index's hash range.
func (r *replay) parseIndexed(rec *fetch.Record, p *newestIndex) (m message, d campaign.Digest, ok bool) {
	if m = r.messages.parser.parseRecord(rec); m.campaign == nil {
		return m, d, false
	}
	d = m.campaign.Key().Digest()
	return m, d, p.contains(d)
}

// halveRange gives half of the hash range away and drops its campaigns.
func (p *newestIndex) halveRange() (rest hashRange) {
	p.hashRange, rest = p.split()
	for d := range p.byDigest {
		if !p.contains(d) {
			delete(p.byDigest, d)
		}
	}
	// A campaign with very many restaurants cannot be cut: allow for it.
	p.limit = max(p.limit, 2*len(p.byDigest))
	return rest
}

// findShared finds the campaigns of several restaurants.
func (p *newestIndex) findShared() {
	p.shared = map[uint64]bool{}
	seen := make(map[uint64]struct{}, len(p.byDigest))
	for d := range p.byDigest {
		if _, ok := seen[d.Campaign()]; ok {
			p.shared[d.Campaign()] = false
		}
		seen[d.Campaign()] = struct{}{}
	}
}

// indexProgress counts the offsets that an index has read.
type indexProgress struct {
	r           *replay
	done, total int64
}

// newIndexProgress starts with the offsets of the ranges.
func (r *replay) newIndexProgress() *indexProgress {
	w := &indexProgress{r: r}
	for _, rg := range r.ranges {
		w.total += rg.until - rg.from
	}
	return w
}

func (w *indexProgress) addTotal(n int64) { w.total += n }

func (w *indexProgress) addDone(n int64) {
	if w.done += n; w.done%1024 == 0 {
		w.r.progress("survey", w.done, w.total)
	}
}
