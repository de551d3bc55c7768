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

// surveyCampaigns bounds how many campaigns a survey holds: some 20 MB. A range
// with more that are still valid is replayed in rounds, each with the share of
// the campaigns that it can hold.
const surveyCampaigns = 1 << 17

// share is a part of all campaigns: those whose id's hash begins with the
// lowest bits of prefix. The zero share is all of them.
type share struct {
	bits   int
	prefix uint64
}

func (s share) has(d campaign.Digest) bool {
	return s.bits == 0 || binary.BigEndian.Uint64(d[:8])>>(64-s.bits) == s.prefix
}

// halves splits a share.
func (s share) halves() (share, share) {
	return share{s.bits + 1, s.prefix << 1}, share{s.bits + 1, s.prefix<<1 | 1}
}

// first tells that the share is the first of its replay: what has no campaign
// id is counted with it.
func (s share) first() bool { return s.prefix == 0 }

// plan is what a survey found: for each campaign of the share that has a valid
// message in the range, its newest message in the topic.
type plan struct {
	share
	newest map[campaign.Digest]campaign.Version
	limit  int // of newest

	// audiences are what a dry run has in the delivered cache for campaigns of
	// several restaurants, by id.
	audiences map[string]id.ID

	mu     sync.Mutex
	shared map[uint64]bool // campaigns with several restaurants; true once its clients are counted
}

// addMessage notes a message unless a newer one is known. It returns false where the
// message is over and none of its campaign is known.
func (p *plan) addMessage(d campaign.Digest, m campaign.Message, now int64) bool {
	m.Distinct = true
	var newest *campaign.Version
	if n, ok := p.newest[d]; ok {
		newest = &n
	}
	switch campaign.Judge(m, newest, now) {
	case campaign.Expired:
		return false
	case campaign.Older:
	default:
		p.newest[d] = m.Version()
	}
	return true
}

// replaced tells that the topic has a newer message of the campaign.
func (p *plan) replaced(d campaign.Digest, m campaign.Version) bool {
	n, ok := p.newest[d]
	return ok && campaign.SurelyNewer(n, m)
}

// countOnce tells, for a campaign of several restaurants, whether its clients
// are still to be counted.
func (p *plan) countOnce(d campaign.Digest) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	counted, ok := p.shared[d.Campaign()]
	if ok {
		p.shared[d.Campaign()] = true
	}
	return !counted
}

func (p *plan) isShared(d campaign.Digest) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.shared[d.Campaign()]
	return ok
}

// survey reads every lane's range, whoever owns it. First it collects the
// campaigns that have a valid message; then it looks for newer messages of
// these, to where each lane reads on and from the time at which the first of
// them was sent: a cancel behind the range, or on another partition, counts.
// Where the share has too many, it is cut; rest is what was cut off.
func (r *replay) survey(ctx context.Context, s share) (_ *plan, rest []share, err error) {
	p := &plan{share: s, newest: map[campaign.Digest]campaign.Version{}, limit: r.svc.surveyCampaigns, audiences: map[string]id.ID{}}
	work := r.newSurveyWork()
	sent := int64(math.MaxInt64)
	for _, rg := range r.ranges {
		err := r.read(ctx, rg.lane, rg.from, rg.until, func(rec *topic.Record) error {
			work.did(1)
			m, d, ok := r.surveyed(rec, p)
			if !ok {
				return nil
			}
			if !p.addMessage(d, m.forJudge(rg.lane), time.Now().Unix()) {
				return nil
			}
			sent = min(sent, m.time)
			for len(p.newest) > p.limit {
				rest = append([]share{p.narrow()}, rest...)
			}
			return nil
		})
		if err != nil {
			return nil, nil, fmt.Errorf("survey the range: %w", err)
		}
	}
	if len(p.newest) > 0 {
		if err := r.lookForNewer(ctx, p, sent, work); err != nil {
			return nil, nil, fmt.Errorf("survey the range: %w", err)
		}
	}
	p.findShared()
	return p, rest, nil
}

// lookForNewer is the survey's second part.
func (r *replay) lookForNewer(ctx context.Context, p *plan, sent int64, work *surveyWork) error {
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
		work.more(rg.next - from)
		err := r.read(ctx, rg.lane, from, rg.next, func(rec *topic.Record) error {
			work.did(1)
			if m, d, ok := r.surveyed(rec, p); ok {
				if _, ok := p.newest[d]; ok {
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

// surveyed parses a record; false for what is no campaign of the share.
func (r *replay) surveyed(rec *topic.Record, p *plan) (m message, d campaign.Digest, ok bool) {
	if m = r.messages.parser.parseRecord(rec); m.campaign == nil {
		return m, d, false
	}
	d = m.campaign.Key().Digest()
	return m, d, p.has(d)
}

// narrow gives half of the share away.
func (p *plan) narrow() (rest share) {
	p.share, rest = p.halves()
	for d := range p.newest {
		if !p.has(d) {
			delete(p.newest, d)
		}
	}
	// One campaign of very many restaurants cannot be cut.
	p.limit = max(p.limit, 2*len(p.newest))
	return rest
}

func (p *plan) findShared() {
	p.shared = map[uint64]bool{}
	seen := make(map[uint64]struct{}, len(p.newest))
	for d := range p.newest {
		if _, ok := seen[d.Campaign()]; ok {
			p.shared[d.Campaign()] = false
		}
		seen[d.Campaign()] = struct{}{}
	}
}

// surveyWork is the progress of a survey.
type surveyWork struct {
	r           *replay
	done, total int64
}

func (r *replay) newSurveyWork() *surveyWork {
	w := &surveyWork{r: r}
	for _, rg := range r.ranges {
		w.total += rg.until - rg.from
	}
	return w
}

func (w *surveyWork) more(n int64) { w.total += n }

func (w *surveyWork) did(n int64) {
	if w.done += n; w.done%1024 == 0 {
		w.r.progress("survey", w.done, w.total)
	}
}
