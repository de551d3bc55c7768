package stream

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
	"dinnerbell/stream/topic/fetch"
)

// session works on one claim, from a TAKEOVER until the lane is stopped or one of
// its goroutines fails. A session is never mended, only replaced. Each goroutine
// is a struct with its own fields; session holds the channels between them.
type session struct {
	lane     *lane
	claim    *takeover.Claim
	reader   *sink.Readers // shared by all lanes
	messages *messageInspector
	starts   *startTimes
	shipped  *shipProgress // ship → commit

	arrivals  chan messageBatch    // intake → decide
	due       chan []*liveCampaign // starter → decide: campaigns to be joined; they have passed the barrier
	demand    chan struct{}        // commit → decide: the next step can be sent at once
	steps     chan *step           // decide → commit
	toShip    chan *inflightStep   // commit → ship, in order
	buffers   chan []byte          // commit → decide: of COPY data that is sent, to be filled again
	corrected correctedKeys        // commit → decide
	guarded   *guardedCampaigns    // commit → decide
	late      *lateWork            // nil: late subscribers are not served
	gate      *reachGate           // until it opens, nothing is joined; nil: it is open
}

// shipProgress is how far the lane's steps are shipped.
type shipProgress struct {
	seq      atomic.Int64      // K
	ends     topic.ReachedEnds // of the notifications topic, as acknowledged
	advanced chan struct{}     // K has advanced; one token
}

func newSession(l *lane, c *takeover.Claim) *session {
	s := &session{
		lane: l, claim: c, reader: l.svc.readers.Open(), starts: newStartTimes(l.svc.startLimit), shipped: &shipProgress{advanced: make(chan struct{}, 1)}, guarded: newGuardedCampaigns(),
		arrivals: make(chan messageBatch), due: make(chan []*liveCampaign), demand: make(chan struct{}), steps: make(chan *step),
		toShip:  make(chan *inflightStep, c.Config.Window+len(c.Pending)),
		buffers: make(chan []byte, 3), // one step is built, two are in flight
	}
	s.messages = newMessageInspector(c.Config, l.id, c.Feedback, c.Limits, s.reader, l.svc.store)
	s.messages.parser.traced = l.svc.traces != nil
	if c.Config.Sink.LateSubscribers {
		s.late, s.gate = newLateWork(), newReachGate(c.SourceLSN)
	}
	l.gate.Store(s.gate)
	s.shipped.seq.Store(c.Shipped)
	s.shipped.ends.Raise(c.EndsBefore)
	return s
}

// run works until soft ends or a goroutine fails. When soft ends, the intake and
// the decider stop, and the steps in flight are committed and shipped within the
// drain timeout. run returns when all goroutines of the session have ended.
func (s *session) run(soft context.Context) error {
	for _, p := range s.claim.Pending {
		s.toShip <- newCommittedStep(p)
	}
	s.claim.Pending = nil // each is freed once it is shipped

	hard, cancelHard := context.WithCancel(context.WithoutCancel(soft))
	defer cancelHard()
	stopDrain := context.AfterFunc(soft, func() { time.AfterFunc(s.lane.svc.cfg.DrainTimeout, cancelHard) })
	defer stopDrain()

	g, hard := errgroup.WithContext(hard)
	soft, cancelSoft := context.WithCancel(soft)
	defer cancelSoft()
	defer context.AfterFunc(hard, cancelSoft)() // a failure stops the intake and the decider too

	g.Go(func() error { return ignoreEnd(soft, s.newIntake().run(soft)) })
	g.Go(func() error { return ignoreEnd(soft, s.newCampaignStarter().run(soft)) })
	g.Go(func() error { return ignoreEnd(soft, s.newReplayer().run(soft)) })
	if s.late != nil {
		g.Go(func() error { return ignoreEnd(soft, s.newLateReader().run(soft)) })
		g.Go(func() error { return ignoreEnd(soft, s.newRejoiner().run(soft)) })
	}
	g.Go(func() error { defer close(s.steps); return ignoreEnd(soft, s.newDecider().run(soft)) })
	g.Go(func() error { defer close(s.toShip); return s.newCommitter().run(hard) })
	g.Go(func() error { return s.newShipper().run(hard) })
	return g.Wait()
}

// ignoreEnd returns nil for the error of a goroutine whose context has ended: the
// cause is another goroutine's error or an orderly stop.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// close ends the session and its claim.
func (s *session) close() {
	s.messages.delivered.forgetAll()
	s.claim.Close()
	s.reader.Close()
}

func (s *session) newIntake() *intake {
	return &intake{lane: s.lane, cfg: s.claim.Config, messages: s.messages, arrivals: s.arrivals,
		input: newLaneInput(s.claim.NextOffset, &fetch.PartitionReader{
			Client: s.claim.Client, NewClient: s.claim.Config.Kafka.NewClient, Topic: s.claim.Config.Kafka.Campaigns, TopicID: s.claim.IDs.CampaignsID, Partition: s.lane.id, MaxRecord: s.claim.Limits.MaxCampaign(),
		})}
}

func (s *session) newCampaignStarter() *campaignStarter {
	return &campaignStarter{lane: s.lane, t: s.claim.Tables, reader: s.reader, timeout: s.claim.Config.SinkTimeout, starts: s.starts, delivered: s.messages.delivered, due: s.due, now: s.lane.svc.now, watch: s.lane.svc.clockWatch}
}

func (s *session) newReplayer() *replayer {
	return &replayer{lane: s.lane, messages: s.messages, arrivals: s.arrivals}
}

func (s *session) newDecider() *decider {
	d := newDecider(s.lane, s.lane.svc.cfg)
	d.claim, d.delivered, d.corrected, d.late = s.claim, s.messages.delivered, &s.corrected, s.late
	d.guarded = s.guarded
	d.arrivals, d.due, d.demand, d.steps, d.buffers = s.arrivals, s.due, s.demand, s.steps, s.buffers
	return d
}

func (s *session) newCommitter() *committer {
	return &committer{
		claim: s.claim, lane: s.lane, reader: s.reader, letters: s.messages.parser.letters, starts: s.starts, shipped: s.shipped, corrected: &s.corrected, guarded: s.guarded, late: s.late,
		demand: s.demand, steps: s.steps, toShip: s.toShip, buffers: s.buffers,
		last: s.claim.Decided, inflight: make(chan *inflightStep, stepsInFlight), results: make(chan error, stepsInFlight),
	}
}

func (s *session) newShipper() *shipper {
	sh := newShipper(s.claim)
	sh.toShip, sh.shipped, sh.note = s.toShip, s.shipped, s.lane.noteShipped
	sh.traces = s.lane.svc.traces
	sh.aborted = func() { s.lane.svc.counters.earlyAborts.Add(1) }
	return sh
}

func (s *session) newLateReader() *lateReader {
	svc := s.lane.svc
	committed := svc.cfg.Committed
	if committed == nil {
		committed = svc.barrier.Barrier
	}
	r := &lateReader{lane: s.lane, claim: s.claim, store: svc.store, reader: s.reader, late: s.late, gate: s.gate, committed: committed, timeout: s.claim.Config.SinkTimeout, log: s.claim.Config.Logger}
	r.served = r.readServed
	return r
}

func (s *session) newRejoiner() *rejoiner {
	return &rejoiner{lane: s.lane, claim: s.claim, reader: s.reader, late: s.late, gate: s.gate, delivered: s.messages.delivered, timeout: s.claim.Config.SinkTimeout}
}
