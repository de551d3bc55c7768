package stream

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/topic"
)

// indexCampaigns bounds how many campaigns a survey holds: some 20 MB. A range
// with more that are still valid is replayed in rounds, each with the share of
// the campaigns that it can hold.
const indexCampaigns = 1 << 17

// hashRange is a part of all campaigns: those whose id's hash begins with the
// lowest bits of prefix. The zero share is all of them.
type hashRange struct {
	bits   int
	prefix uint64
}

func (s hashRange) contains(d campaign.Digest) bool {
	return s.bits == 0 || binary.BigEndian.Uint64(d[:8])>>(64-s.bits) == s.prefix
}

// split splits a share.
func (s hashRange) split() (hashRange, hashRange) {
	return hashRange{s.bits + 1, s.prefix << 1}, hashRange{s.bits + 1, s.prefix<<1 | 1}
}

// isFirst tells that the share is the first of its replay: what has no campaign
// id is counted with it.
func (s hashRange) isFirst() bool { return s.prefix == 0 }

// newestIndex is what a survey found: for each campaign of the share that has a valid
// message in the range, its newest message in the topic.
type newestIndex struct {
	hashRange
	byDigest map[campaign.Digest]campaign.Version
	limit    int // of newest

	// audiences are what a dry run has in the delivered cache for campaigns of
	// several restaurants, by id.
	audiences map[string]id.ID

	mu     sync.Mutex
	shared map[uint64]bool // campaigns with several restaurants; true once its clients are counted
}

// addMessage notes a message unless a newer one is known. It returns false where the
// message is over and none of its campaign is known.
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

// isSuperseded tells that the topic has a newer message of the campaign.
func (p *newestIndex) isSuperseded(d campaign.Digest, m campaign.Version) bool {
	n, ok := p.byDigest[d]
	return ok && campaign.SurelyNewer(n, m)
}

// markCounted tells, for a campaign of several restaurants, whether its clients
// are still to be counted.
func (p *newestIndex) markCounted(d campaign.Digest) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	counted, ok := p.shared[d.Campaign()]
	if ok {
		p.shared[d.Campaign()] = true
	}
	return !counted
}

func (p *newestIndex) hasRestaurants(d campaign.Digest) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.shared[d.Campaign()]
	return ok
}

// indexNewest reads every lane's range, whoever owns it. First it collects the
// campaigns that have a valid message; then it looks for newer messages of
// these, to where each lane reads on and from the time at which the first of
// them was sent: a cancel behind the range, or on another partition, counts.
// Where the share has too many, it is cut; rest is what was cut off.
func (r *replay) indexNewest(ctx context.Context, s hashRange) (_ *newestIndex, rest []hashRange, err error) {
	p := &newestIndex{hashRange: s, byDigest: map[campaign.Digest]campaign.Version{}, limit: r.svc.indexCampaigns, audiences: map[string]id.ID{}}
	work := r.newIndexProgress()
	sent := int64(math.MaxInt64)
	for _, rg := range r.ranges {
		err := r.readOffsets(ctx, rg.lane, rg.from, rg.until, func(rec *topic.Record) error {
			work.addDone(1)
			m, d, ok := r.parseIndexed(rec, p)
			if !ok {
				return nil
			}
			if !p.addMessage(d, m.forJudge(rg.lane), time.Now().Unix()) {
				return nil
			}
			sent = min(sent, m.time)
			for len(p.byDigest) > p.limit {
				rest = append([]hashRange{p.halveRange()}, rest...)
			}
			return nil
		})
		if err != nil {
			return nil, nil, fmt.Errorf("survey the range: %w", err)
		}
	}
	if len(p.byDigest) > 0 {
		if err := r.lookForNewer(ctx, p, sent, work); err != nil {
			return nil, nil, fmt.Errorf("survey the range: %w", err)
		}
	}
	p.findSeveral()
	return p, rest, nil
}

// lookForNewer is the survey's second part.
func (r *replay) lookForNewer(ctx context.Context, p *newestIndex, sent int64, work *indexProgress) error {
	name := r.svc.cfg.Kafka.Campaigns
	after, err := kadm.NewClient(r.client).ListOffsetsAfterMilli(ctx, sent, name)
	if err != nil {
		return fmt.Errorf("list offsets of topic %s: %w", name, err)
	}
	for _, rg := range r.ranges {
		from := rg.until // the only lane's own order was seen
		if len(r.ranges) > 1 {
			from = rg.from
			if o, ok := after.Lookup(name, rg.lane); ok && o.Err == nil {
				from = max(rg.start, min(from, o.Offset))
			}
		}
		work.addTotal(rg.next - from)
		err := r.readOffsets(ctx, rg.lane, from, rg.next, func(rec *topic.Record) error {
			work.addDone(1)
			if m, d, ok := r.parseIndexed(rec, p); ok {
				if _, ok := p.byDigest[d]; ok {
					p.addMessage(d, m.forJudge(rg.lane), time.Now().Unix())
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

// parseIndexed parses a record; false for what is no campaign of the share.
func (r *replay) parseIndexed(rec *topic.Record, p *newestIndex) (m message, d campaign.Digest, ok bool) {
	if m = r.messages.parser.parseRecord(rec); m.campaign == nil {
		return m, d, false
	}
	d = m.campaign.Key().Digest()
	return m, d, p.contains(d)
}

// halveRange gives half of the share away.
func (p *newestIndex) halveRange() (rest hashRange) {
	p.hashRange, rest = p.split()
	for d := range p.byDigest {
		if !p.contains(d) {
			delete(p.byDigest, d)
		}
	}
	// One campaign of very many restaurants cannot be cut.
	p.limit = max(p.limit, 2*len(p.byDigest))
	return rest
}

func (p *newestIndex) findSeveral() {
	p.shared = map[uint64]bool{}
	seen := make(map[uint64]struct{}, len(p.byDigest))
	for d := range p.byDigest {
		if _, ok := seen[d.Campaign()]; ok {
			p.shared[d.Campaign()] = false
		}
		seen[d.Campaign()] = struct{}{}
	}
}

// indexProgress is the progress of a survey.
type indexProgress struct {
	r           *replay
	done, total int64
}

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
