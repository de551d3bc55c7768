package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"dinnerbell/internal/failpoint"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/topic/fetch"
)

const (
	// maxReplayWindow and maxReplayCached bound the messages that a lane's replay hands to
	// the decider at once, and the clients in the delivered cache for them.
	maxReplayWindow = 100
	maxReplayCached = 100_000

	// replayTries is how often a lane's replay starts again, in the next session or
	// after an error, without progress.
	replayTries = 8
)

// laneReplay is one lane's part of a hash range's replay. It outlives the lane's sessions:
// each session continues at the offset that the one before it reached.
type laneReplay struct {
	*replay
	ctx         context.Context //nolint:containedctx // of the command that requested the replay
	handle      *laneHandle
	id          int32
	from, until int64
	index       *newestIndex
	next        int64      // every offset before it is done
	result      chan error // of one session; one token

	mu     sync.Mutex             // guards the fields below, for replayer and committer
	open   map[campaign.Key]int64 // versions of campaigns that are accepted and not yet delivered to the end
	counts ReplayCounts
	wake   chan struct{} // open has changed; one token
}

// run replays the lane's range, over as many sessions as it takes.
func (l *laneReplay) run(ctx context.Context) error {
	if l.dryRun {
		return l.countCampaigns(ctx)
	}
	lane := l.handle.lane
	lane.replay.Store(l)
	defer lane.replay.Store(nil)
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 100*time.Millisecond, 5*time.Second
	for tries := 1; ; tries++ {
		before := l.next
		select {
		case lane.replays <- l:
		case <-l.handle.done:
			return l.explainStopped(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
		err := <-l.result
		if err == nil || ctx.Err() != nil || lacksRight(err) {
			return err
		}
		if l.next > before {
			tries = 0
			wait.Reset()
		}
		if tries == replayTries {
			return fmt.Errorf("replayed up to offset %d: %w; run this again", l.next, err)
		}
		l.svc.cfg.Logger.Warn("replay goes on with the next session", "lane", l.id, "offset", l.next, "error", err)
		select {
		case <-time.After(wait.NextBackOff()):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// explainStopped returns why the lane has no session any more. The lane has ended.
func (l *laneReplay) explainStopped(ctx context.Context) error {
	lane := l.handle.lane
	lane.mu.Lock()
	halted := lane.status.Halted
	lane.mu.Unlock()
	l.svc.mu.Lock()
	ending := l.handle.ending
	l.svc.mu.Unlock()
	switch {
	case halted != nil:
		return fmt.Errorf("%w; then run this again", halted)
	case ending.loss != nil:
		return l.svc.explainLoss(ctx, ending.loss)
	case ending.given:
		return errors.New("the lane was stopped here, it was given to another daemon; see `dinnerbell status`, then run this again")
	}
	return errors.New("the daemon is being stopped; run this again once it is back")
}

// replayer runs the replays of a lane in one session.
type replayer struct {
	lane     *lane
	messages *messageInspector
	arrivals chan<- messageBatch
}

// run replays until ctx ends.
func (s *replayer) run(ctx context.Context) error {
	for {
		select {
		case l := <-s.lane.replays:
			l.result <- s.replayLane(ctx, l)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// replayLane continues a lane's replay. It returns nil when every message is judged and
// every accepted campaign is delivered.
func (s *replayer) replayLane(ctx context.Context, l *laneReplay) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	if err := l.dropDelivered(ctx, s.messages.lookup); err != nil {
		return err
	}
	err := l.eachBatch(ctx, &s.messages.parser, func(batch []message, next int64) error {
		counts, err := s.replayBatch(ctx, l, batch)
		if err != nil {
			return err
		}
		l.noteDone(next, counts)
		return nil
	})
	if err != nil {
		return err
	}
	return l.awaitDelivery(ctx)
}

// eachBatch reads the range from next on and calls fn with batches as large as those of
// intake.
func (l *laneReplay) eachBatch(ctx context.Context, parser *messageParser, fn func(batch []message, next int64) error) error {
	var batch []message
	size := 0
	flush := func(next int64) error {
		if len(batch) == 0 {
			return nil
		}
		err := fn(batch, next)
		batch, size = batch[:0], 0
		return err
	}
	err := l.readOffsets(ctx, l.id, l.next, l.until, func(r *fetch.Record) error {
		m := parser.parseRecord(r)
		if len(batch) > 0 && (len(batch) == intakeMessages || size+m.memorySize() > l.svc.cfg.StepBytes) {
			if err := flush(r.Offset); err != nil {
				return err
			}
		}
		batch, size = append(batch, m), size+m.memorySize()
		return nil
	})
	if err != nil {
		return err
	}
	return flush(l.until)
}

// noteDone notes that the offsets before next are done.
func (l *laneReplay) noteDone(next int64, counts ReplayCounts) {
	failpoint.Hit("replay/settled")
	l.mu.Lock()
	l.counts.addCounts(counts)
	l.mu.Unlock()
	l.addProgress(next - l.next)
	l.next = next
}

// judgeBatch passes the barrier, looks the batch's campaigns up, and returns the messages
// that the lane must accept.
func (l *laneReplay) judgeBatch(ctx context.Context, messages *messageInspector, batch []message) (todo []*message, counts ReplayCounts, err error) {
	fresh := l.svc.now()
	if err := l.handle.lane.awaitFresh(ctx); err != nil {
		return nil, counts, err
	}
	if err := messages.lookup.fillVersionsAnew(ctx, batch); err != nil {
		return nil, counts, err
	}
	for i := range batch {
		m := &batch[i]
		if m.campaign == nil {
			if l.index.isFirst() {
				counts.Messages++
				counts.Dead++
			}
			continue
		}
		d := m.campaign.Key().Digest()
		if !l.index.contains(d) { // of another hash range
			continue
		}
		m.received, m.fresh, m.superseded = fresh, fresh, l.index.isSuperseded(d, campaign.Version{Position: campaign.Position{Lane: l.id, Offset: m.offset}, Time: m.time})
		outcome := m.judgeReplayed(l.id, m.accepted, fresh.Unix())
		counts.addOutcome(outcome, m.campaign.Start > fresh.Unix())
		if m.joinsAgain(outcome, fresh.Unix()) {
			todo = append(todo, m)
		}
	}
	return todo, counts, nil
}

// replayBatch hands a batch to the decider and waits until the decider has accepted it.
func (s *replayer) replayBatch(ctx context.Context, l *laneReplay, batch []message) (ReplayCounts, error) {
	todo, counts, err := l.judgeBatch(ctx, s.messages, batch)
	if err != nil {
		return counts, err
	}
	var window []message
	cached := 0
	for i, m := range todo {
		if m.isRunning() {
			if m.delivered, m.have, err = s.messages.delivered.loadClients(ctx, m.campaign.Key()); err != nil {
				return counts, err
			}
			if l.index.markCounted(m.campaign.Key().Digest()) {
				counts.Have += int64(m.have)
			}
			cached += m.have
		}
		window = append(window, *m)
		if i < len(todo)-1 && len(window) < maxReplayWindow && cached < maxReplayCached {
			continue
		}
		// Loading may have taken long. If the campaign changes once more, the step is
		// found stale, as with an edit.
		if err := s.messages.lookup.fillVersionsAnew(ctx, window); err != nil {
			return counts, err
		}
		if err := s.handToDecider(ctx, l, window); err != nil {
			return counts, err
		}
		window, cached = nil, 0
	}
	return counts, nil
}

// isRunning reports whether the message is joined at once: its start has come and its end
// has not.
func (m *message) isRunning() bool {
	return m.campaign.Start <= m.fresh.Unix() && m.campaign.End > m.fresh.Unix()
}

// replayWindow follows some messages of a replay through decider and committer.
type replayWindow struct {
	of   *laneReplay
	left atomic.Int64
	done chan struct{} // closed once all messages are done
}

// isCancelled reports whether the command that requested the replay has ended.
func (f *replayWindow) isCancelled() bool { return f.of.ctx.Err() != nil }

// markDone notes that one message is committed, or has no effect.
func (f *replayWindow) markDone() {
	if f.left.Add(-1) == 0 {
		close(f.done)
	}
}

// handToDecider hands messages to the decider and waits until all of them are done.
func (s *replayer) handToDecider(ctx context.Context, l *laneReplay, window []message) error {
	f := &replayWindow{of: l, done: make(chan struct{})}
	f.left.Store(int64(len(window)))
	for i := range window {
		window[i].window = f
	}
	failpoint.Hit("replay/feed")
	if err := sendBatch(ctx, s.arrivals, messageBatch{replayed: window}); err != nil {
		return err
	}
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// noteReplayed tracks a committed step for the replay in progress.
func (l *lane) noteReplayed(st *step, p *record.Payload) {
	if r := l.replay.Load(); r != nil {
		r.noteCommitted(st, p)
	}
	for _, f := range st.windows {
		f.markDone()
	}
}

// noteCommitted notes which of the replay's campaigns a step began and finished, and how
// many clients it notified for them.
func (l *laneReplay) noteCommitted(st *step, p *record.Payload) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, r := range st.rows {
		_, open := l.open[k]
		switch {
		case r.window != nil && r.window.of == l && (r.started || r.postponed):
			l.open[k] = r.version
		case open && r.accept: // edited
			delete(l.open, k)
		}
	}
	for i := range p.Segments {
		if _, ok := l.open[p.Segments[i].Campaign.Key()]; ok {
			l.counts.Notified += int64(p.Segments[i].Clients.Len())
		}
	}
	for k, r := range st.rows {
		if r.state != "" && r.state != sink.StatePending {
			delete(l.open, k)
		}
	}
	for _, k := range st.lost { // another message has taken the campaign
		delete(l.open, k)
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// noteGone notes that the starter was to bring campaigns back and has not found them: they
// were delivered, or an operator holds them, or another lane has them. No step of this lane
// may ever name such a campaign.
func (l *laneReplay) noteGone(due []startTime, found []*liveCampaign) {
	there := make(map[campaign.Key]bool, len(found))
	for _, c := range found {
		there[c.Key()] = true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range due {
		if !there[p.key] && l.open[p.key] == p.version {
			delete(l.open, p.key)
		}
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// awaitDelivery waits until the accepted campaigns are delivered.
func (l *laneReplay) awaitDelivery(ctx context.Context) error {
	for {
		l.mu.Lock()
		open := len(l.open)
		l.mu.Unlock()
		if open == 0 {
			return nil
		}
		select {
		case <-l.wake:
			l.addProgress(0)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// dropDelivered forgets open campaigns that were delivered, or taken over by another lane,
// in a commit that this replay did not see because the session before ended.
func (l *laneReplay) dropDelivered(ctx context.Context, lookup campaignLookup) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookup.timeout)
	defer cancel()
	left, err := lookup.t.ReadPendingVersions(ctx, lookup.reader, l.id, slices.Collect(maps.Keys(l.open)))
	if err != nil {
		return err
	}
	maps.DeleteFunc(left, func(k campaign.Key, version int64) bool { return l.open[k] != version })
	l.open = left
	return nil
}

// maxReplayLive is how many replayed campaigns of a lane are in their fan-out at once.
// They share each step with the lane's own long campaigns, so a replay of many large
// campaigns does not starve these.
const maxReplayLive = 4

// judgeReplayed judges a message that a replay has read again.
func (m *message) judgeReplayed(lane int32, accepted *campaign.Version, now int64) campaign.Outcome {
	judged := m.forJudge(lane)
	judged.Replayed = true
	return campaign.Judge(judged, accepted, now)
}

// joinsAgain reports whether a replay has its lane accept the message, once more or for
// the first time. A campaign that is accepted and waits for its start needs nothing.
func (m *message) joinsAgain(outcome campaign.Outcome, now int64) bool {
	switch outcome {
	case campaign.First, campaign.Edit, campaign.Cancel, campaign.Revive, campaign.Held:
		return true
	case campaign.Again:
		return m.campaign.Start <= now
	default:
		return false
	}
}

// addOutcome counts a campaign's message; ahead is set if its start lies ahead.
func (c *ReplayCounts) addOutcome(outcome campaign.Outcome, ahead bool) {
	c.Messages++
	switch {
	case outcome == campaign.Expired, outcome == campaign.Cancel:
		c.Expired++
	case outcome == campaign.Older:
		c.Superseded++
	case outcome == campaign.Stands, outcome == campaign.Held:
		c.Held++
	case ahead:
		c.Scheduled++
	default:
		c.Valid++
	}
}

// acceptReplayed accepts the next message of a replay. Newly received messages go first,
// and a replayed one never moves next_offset. The look-up may be older than the last
// messages that this lane accepted, so the message is judged anew.
func (d *decider) acceptReplayed(st *step) bool {
	if len(d.replayed) == 0 || !d.hasRoom() || d.sched.replayed >= maxReplayLive || !st.canAccept(&d.replayed[0]) {
		return false
	}
	m := d.replayed[0]
	d.replayed = d.replayed[1:]
	before := d.newestAccepted(st, &m)
	now := d.lane.svc.now().Unix()
	outcome := m.judgeReplayed(d.lane.id, before, now)
	if m.window.isCancelled() || !m.joinsAgain(outcome, now) {
		if m.delivered != "" {
			d.delivered.deleteCaches(m.delivered)
		}
		m.window.markDone()
		return true
	}
	st.size += m.campaign.Size()
	d.acceptCampaign(st, &m, before, outcome)
	st.windows = append(st.windows, m.window)
	return true
}
