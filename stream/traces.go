package stream

import (
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
)

// Tracer follows campaigns. Its methods, and those of its traces, are called from any
// goroutine; they must not wait for anything.
type Tracer interface {
	// BeginTrace begins the trace of an accepted campaign.
	BeginTrace(c *TracedCampaign) Trace
}

// TracedCampaign is a campaign at its acceptance.
type TracedCampaign struct {
	Campaign, Restaurant string
	Lane                 int32
	Offset               int64
	Traceparent          string // header of the message (https://www.w3.org/TR/trace-context/); "": none
	Received             time.Time
	Waited               time.Duration // for the freshness barrier
}

// Trace is a campaign on its way.
type Trace interface {
	// Traceparent is the header of the campaign's notifications.
	Traceparent() string
	// AddStep adds what happened to one step: it was decided, or shipped.
	AddStep(name string, from, to time.Time, seq, clients int64)
	// EndTrace ends the trace. audience is -1 where it is not known.
	EndTrace(at time.Time, outcome string, audience, notified int64)
}

const (
	// TraceparentHeader is the header of messages and notifications.
	TraceparentHeader = "traceparent"
	// traceHeaderBytes is more than the header takes in a record.
	traceHeaderBytes = 100
	// maxTraces bounds the campaigns that are traced at a time: one that an operator
	// cancelled, or that another lane delivers, does not end here.
	maxTraces = 4096
)

// campaignTraces are the traces of the campaigns that this process has accepted and not
// finished. They are in memory alone: campaigns that come from the campaign table (after
// a restart, a takeover, an edit by another lane) have none. A nil *campaignTraces traces
// nothing.
type campaignTraces struct {
	tracer Tracer

	mu    sync.Mutex // guards byKey and the traces in it
	byKey map[campaign.Key]*campaignTrace
}

type campaignTrace struct {
	Trace
	headers []kgo.RecordHeader
	end     int64               // of the campaign, Unix seconds
	decided map[int64]time.Time // when the steps that are not shipped were decided
}

// newCampaignTraces returns nil without a tracer.
func newCampaignTraces(tracer Tracer) *campaignTraces {
	if tracer == nil {
		return nil
	}
	return &campaignTraces{tracer: tracer, byKey: map[campaign.Key]*campaignTrace{}}
}

// beginTrace begins the trace of a campaign in place of a former one.
func (t *campaignTraces) beginTrace(m *message, lane int32) {
	if t == nil || m.window != nil { // a replay's clients were told before, or in vain
		return
	}
	k := m.campaign.Key()
	k.Campaign, k.Restaurant = strings.Clone(k.Campaign), strings.Clone(k.Restaurant) // not to hold the message
	c := &campaignTrace{end: m.campaign.End, decided: map[int64]time.Time{}, Trace: t.tracer.BeginTrace(&TracedCampaign{
		Campaign: k.Campaign, Restaurant: k.Restaurant, Lane: lane, Offset: m.offset, Traceparent: m.traceparent, Received: m.received, Waited: m.waited,
	})}
	c.headers = []kgo.RecordHeader{{Key: TraceparentHeader, Value: []byte(c.Traceparent())}}
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.byKey[k]; old != nil {
		old.EndTrace(m.received, "replaced", -1, 0)
	} else if len(t.byKey) >= maxTraces {
		t.makeRoomLocked(m.received)
	}
	t.byKey[k] = c
}

// makeRoomLocked ends the traces of campaigns that are over, or any trace.
func (t *campaignTraces) makeRoomLocked(now time.Time) {
	for k, c := range t.byKey {
		if c.end <= now.Unix() {
			c.EndTrace(now, "over", -1, 0)
			delete(t.byKey, k)
		}
	}
	for k, c := range t.byKey {
		if len(t.byKey) < maxTraces {
			return
		}
		c.EndTrace(now, "not followed any more", -1, 0)
		delete(t.byKey, k)
	}
}

// noteDecided adds a committed step to the traces of its campaigns.
func (t *campaignTraces) noteDecided(st *step, seq int64) {
	if t == nil {
		return
	}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, r := range st.rows {
		if c := t.byKey[k]; c != nil && r.served {
			c.AddStep("decide", st.began, now, seq, r.notified)
			if r.notified > 0 {
				c.decided[seq] = now
			}
		}
	}
}

// noteShipped adds shipped steps to the traces of their campaigns.
func (t *campaignTraces) noteShipped(batch []*record.Payload) {
	if t == nil {
		return
	}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range batch {
		for i := range p.Segments {
			seg := &p.Segments[i]
			c := t.byKey[seg.Campaign.Key()]
			if c == nil {
				continue
			}
			from, ok := c.decided[p.Seq]
			if !ok {
				from = now
			}
			delete(c.decided, p.Seq)
			c.AddStep("ship", from, now, p.Seq, int64(seg.Clients.Len()))
		}
	}
}

// noteFinished ends the trace of a campaign whose last step is shipped.
func (t *campaignTraces) noteFinished(f *finishedCampaign, now time.Time) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	k := f.Key()
	if c := t.byKey[k]; c != nil {
		delete(t.byKey, k)
		c.EndTrace(now, string(f.what), f.counts.Audience, f.counts.Notified)
	}
}

// headers returns the headers of a campaign's notifications; nil: none.
func (t *campaignTraces) headers(k campaign.Key) []kgo.RecordHeader {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.byKey[k]; c != nil {
		return c.headers
	}
	return nil
}

// endAll ends all traces when the service ends.
func (t *campaignTraces) endAll() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	for c := range maps.Values(t.byKey) {
		c.EndTrace(now, "interrupted", -1, 0)
	}
	clear(t.byKey)
}
