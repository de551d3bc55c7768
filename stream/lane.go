package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/precondition"
	"dinnerbell/state"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
)

// healthySession is how long a session must have lived for the next one to start
// without delay.
const healthySession = 10 * time.Second

// lane is one partition of the campaigns topic while this process is assigned
// to it. It runs one session after another.
type lane struct {
	svc *Service
	id  int32

	waiting  atomic.Int32 // goroutines that wait for the freshness barrier
	narrowed atomic.Int64 // clients of a step where Postgres is too slow for the configured number; 0: as configured

	gate         atomic.Pointer[reachGate] // of the session; nil: open
	passedLSN    atomic.Uint64             // how far the reader of new subscriptions has come; 0: late subscribers are not served
	handedLSN    atomic.Uint64             // the position of the last late picks that decide has
	committedLSN atomic.Uint64             // as the lane's row has it

	replays chan *laneReplay           // from a replay to the session
	replay  atomic.Pointer[laneReplay] // the one under way

	assigned time.Time            // when this daemon got the lane
	lastEnd  topic.TransactionEnd // for takeovers, one after the other

	mu     sync.Mutex // guards status: written by the session, read by Status
	status LaneStatus
	counts laneTotals
	held   heldInput
	late   lateness
	starts *startTimes
	ended  laneEnd

	unshipped []finishedCampaign       // in the order of their steps
	fanOuts   map[campaign.Key]*fanOut // of the session
}

// laneEnd is what the end of a lane's last session leaves of the figures that only a
// session has.
type laneEnd struct {
	at              time.Time // zero: no session has run in this process
	live, scheduled int64
}

// lastFigures returns the totals and what the last session left.
func (l *lane) lastFigures() (laneTotals, laneEnd) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts, l.ended
}

// laneTotals are the lane's totals as Status adds them up.
type laneTotals struct {
	takeover.Totals
	shipped int64 // notifications
	live    int
}

// run works on the lane, one session after another, until ctx ends. It returns nil
// then, and a *halt.Error when an operator is needed.
func (l *lane) run(ctx context.Context) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 100*time.Millisecond, 5*time.Second
	var violated takeover.ViolationWatch
	for {
		began := time.Now()
		err := violated.HaltIfLasting(l.runSession(ctx), l.id, l.svc.unmetPatience)
		l.setState(LaneStopped, err)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // an orderly end: the next takeover reads how far both sinks are
		}
		l.svc.counters.sessionsFailed.Add(1)
		if halted, ok := errors.AsType[*halt.Error](err); ok {
			l.svc.cfg.Logger.Error("lane halted", "lane", l.id, "what", halted.What, "to_mend", halted.Hint)
			return halted
		}
		if time.Since(began) > healthySession {
			wait.Reset()
		}
		delay := wait.NextBackOff()
		if isRenewal(err) {
			l.svc.cfg.Logger.Info("lane is taken over anew", "lane", l.id, "reason", err)
		} else {
			l.svc.cfg.Logger.Warn("lane session ended; taking over again", "lane", l.id, "error", err, "again_in", delay.Round(time.Millisecond))
		}
		if !l.pauseBeforeSession(ctx, delay, err) {
			return nil
		}
	}
}

// pauseBeforeSession waits before the next session and reports whether there is one. A replay that waits
// for a session gets the right that this lane lacks: no session begins before somebody has
// granted it.
func (l *lane) pauseBeforeSession(ctx context.Context, delay time.Duration, err error) bool {
	replays := l.replays
	if !lacksRight(err) {
		replays = nil
	}
	over := time.NewTimer(delay)
	defer over.Stop()
	for {
		select {
		case r := <-replays:
			r.result <- err
		case <-over.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// lacksRight reports whether a session has failed because of a precondition that does not
// hold, or of a request that Postgres or Kafka has refused for want of a right.
func lacksRight(err error) bool {
	if _, unmet := errors.AsType[*precondition.UnmetError](err); unmet {
		return true
	}
	return sink.IsDenied(err) || errors.Is(err, kerr.TopicAuthorizationFailed) || errors.Is(err, kerr.GroupAuthorizationFailed) || errors.Is(err, kerr.TransactionalIDAuthorizationFailed)
}

// isRenewal reports whether a session has ended because the local subscriptions were
// rebuilt, set back or came faster than their log holds, or because of another version of a
// campaign. That is no trouble: the next session reads everything anew.
func isRenewal(err error) bool {
	return errors.Is(err, errSetBack) || errors.Is(err, errSourceChanged) || errors.Is(err, errLateChanged) || errors.Is(err, state.ErrLogGap)
}

// runSession takes the lane over and works on it until ctx ends or a goroutine of
// the session fails.
func (l *lane) runSession(ctx context.Context) error {
	l.setState(LaneTakeover, nil)
	s, err := l.takeOver(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	c := s.claim
	l.noteTakeover(c, s.starts)
	l.noteFinished(c.Shipped)
	l.svc.cfg.Logger.Info("lane taken over", "lane", l.id, "epoch", c.Epoch, "decided", c.Decided, "shipped", c.Shipped, "next_offset", c.NextOffset)
	return s.run(ctx)
}

// TakeOver makes this process the lane's owner and returns a session on the claim.
func (l *lane) takeOver(ctx context.Context) (*session, error) {
	c, err := takeover.TakeOver(ctx, l.svc.cfg.Config, l.id, takeover.Options{
		Now: l.svc.now, Slots: l.svc.connectionSlots, Patience: l.svc.stepPatience, Slow: l.showSlowStep,
		LastEnd: &l.lastEnd, Waiting: func(err error) { l.setState(LaneTakeover, err) },
	})
	if err != nil {
		return nil, err
	}
	return newSession(l, c), nil
}

// showSlowStep shows a takeover's slow step in status and log.
func (l *lane) showSlowStep(step string, why error) {
	err := fmt.Errorf("%s: %w", step, why)
	l.setState(LaneTakeover, err)
	l.svc.cfg.Logger.Warn("takeover takes long", "lane", l.id, "error", err)
}

func (l *lane) setState(state LaneState, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.status.State == LaneRunning && state != LaneRunning {
		l.ended.at = time.Now()
		l.ended.live, l.ended.scheduled = l.openCampaignsLocked()
	}
	l.status.State = state
	if err != nil {
		l.status.LastError = err.Error()
	}
	if state != LaneRunning {
		l.late.endSession(l.oldestDueLocked())
		l.starts, l.counts.live, l.fanOuts = nil, 0, nil
		l.gate.Store(nil)
		l.passedLSN.Store(0)
	}
	if halted, ok := errors.AsType[*halt.Error](err); ok {
		l.status.State, l.status.Halted = LaneHalted, halted
	}
}

func (l *lane) noteTakeover(c *takeover.Claim, times *startTimes) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.starts = times
	l.status.State, l.status.LastError = LaneRunning, ""
	l.late.before = time.Time{}
	l.status.Epoch, l.status.Decided, l.status.Shipped, l.status.NextOffset = c.Epoch, c.Decided, c.Shipped, c.NextOffset
	l.counts = laneTotals{Totals: c.Totals, shipped: c.Totals.Notified}
	l.unshipped = slices.DeleteFunc(l.unshipped, func(f finishedCampaign) bool { return f.seq > c.Decided }) // the sink was set back
	for _, p := range c.Pending {
		l.counts.shipped -= int64(p.Notifications())
	}
}

func (l *lane) noteDecided(st *step, p *record.Payload) {
	l.svc.counters.decided.Add(int64(p.Notifications()))
	l.noteCounts(st)
	l.noteSkipped(st, p.Seq)
	l.noteCampaigns(st, p.Seq)
	l.svc.traces.noteDecided(st, p.Seq)
	l.noteLate(st)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.Decided = p.Seq
	l.status.NextOffset = max(l.status.NextOffset, st.nextOffset)
	l.late.noteDecided(p.Seq, l.status.NextOffset)
	l.counts.Notified += int64(p.Notifications())
	l.counts.Expired += st.expired
	l.counts.Dead += p.RefusedMessages()
}

func (l *lane) noteShipped(batch []*record.Payload) {
	defer l.noteFinished(batch[len(batch)-1].Seq)
	l.svc.traces.noteShipped(batch)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late.noteShipped(batch[len(batch)-1].Seq, l.svc.cfg.Durations.Shipped)
	for _, p := range batch {
		l.status.Shipped = p.Seq
		l.counts.shipped += int64(p.Notifications())
		l.svc.counters.shipped.Add(int64(p.Notifications()))
	}
}

func (l *lane) setLiveCount(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.live = n
}

// A step that Postgres does not finish in time is repeated by the next session.
// Where triggers and constraints of the feedback table take the time, the repeats
// would never end. So each step that times out halves the clients of the lane's next
// steps, and each step that is finished in a small part of the time doubles them
// again, up to the configured number.

// quick: a step that is finished within SinkTimeout/quick could be twice as large.
const quick = 8

// stepClients bounds the clients of the lane's next step.
func (l *lane) stepClients() int {
	if n := l.narrowed.Load(); n > 0 {
		return int(n)
	}
	return l.svc.cfg.StepClients
}

// widenSteps doubles the clients of the next step after a quick one, where
// narrowSteps had halved them.
func (l *lane) widenSteps(took time.Duration) {
	if n := l.narrowed.Load(); n > 0 && took < l.svc.cfg.SinkTimeout/quick {
		l.narrowed.Store(min(2*n, int64(l.svc.cfg.StepClients)))
	}
}

func (l *lane) narrowSteps() {
	l.narrowed.Store(int64(max(1, l.stepClients()/2)))
}

const (
	// inputWatch is how often the ends of the campaigns topic are read.
	inputWatch = 2 * time.Second
	// inputPatience is how long an open transaction may hold campaigns back before
	// status and log show it. A producer's ordinary transactions are shorter.
	inputPatience = 5 * time.Second
)

// heldInput describes an open transaction of another producer on the lane's
// partition. Readers of committed records, so this lane, do not get the records
// behind the transaction's first one.
type heldInput struct {
	stable int64     // the last stable offset
	since  time.Time // since when it stands there; zero: nothing is held
	shown  bool
}

// watchInput looks for open transactions of other producers on the campaigns topic,
// until ctx ends. Nothing else shows that campaigns wait for one.
func (s *Service) watchInput(ctx context.Context, client *kgo.Client) error {
	adm := kadm.NewClient(client)
	tick := time.NewTicker(inputWatch)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		topic := s.cfg.Kafka.Campaigns
		stable, err := bounded(ctx, s.cfg.SinkTimeout, func(ctx context.Context) (kadm.ListedOffsets, error) { return adm.ListCommittedOffsets(ctx, topic) })
		if err != nil {
			continue // the lanes report the error
		}
		ends, err := bounded(ctx, s.cfg.SinkTimeout, func(ctx context.Context) (kadm.ListedOffsets, error) { return adm.ListEndOffsets(ctx, topic) })
		if err != nil {
			continue
		}
		s.mu.Lock()
		lanes := make([]*lane, 0, len(s.lanes))
		for _, h := range s.lanes {
			lanes = append(lanes, h.lane)
		}
		s.mu.Unlock()
		for _, l := range lanes {
			at, ok := stable.Lookup(topic, l.id)
			end, ok2 := ends.Lookup(topic, l.id)
			if ok && ok2 && at.Err == nil && end.Err == nil {
				l.noteHeldInput(at.Offset, end.Offset, time.Now())
			}
		}
	}
}

// noteHeldInput records how far a lane's partition can be read. It logs a
// transaction that holds campaigns back, once, and the transaction's end.
func (l *lane) noteHeldInput(stable, end int64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late.input.noteEnd(end, l.status.NextOffset, now)
	h := &l.held
	if stable >= end || stable != h.stable {
		if h.shown {
			l.svc.cfg.Logger.Info("the transaction that held campaigns back has ended", "lane", l.id, "offset", h.stable)
		}
		*h = heldInput{stable: stable}
	}
	if stable >= end {
		return
	}
	if h.since.IsZero() {
		h.since = now
	}
	if !h.shown && now.Sub(h.since) >= l.svc.inputPatience {
		h.shown = true
		l.svc.cfg.Logger.Warn("an open transaction of another producer holds campaigns back", "lane", l.id, "offset", stable, "waiting", end-stable,
			"to_mend", "end it, or wait for its transaction.timeout.ms; kafka-transactions.sh find-hanging names it")
	}
}

// describe names the transaction that holds the lane's campaigns back; "" if there
// is none.
func (h *heldInput) describe(topic string, partition int32) string {
	if !h.shown {
		return ""
	}
	return fmt.Sprintf("an open transaction of another producer on %s/%d holds back what is behind offset %d, since %s; end it, or wait for its transaction.timeout.ms (kafka-transactions.sh find-hanging names it)",
		topic, partition, h.stable, h.since.UTC().Format(time.RFC3339))
}
