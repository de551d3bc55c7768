package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/precondition"
	"dinnerbell/state"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
)

// Barrier waits for fresh subscriptions. It returns once the local subscriptions are as
// fresh as the operator wants them (by default: they hold every change that was
// committed in Postgres before the call), or with an error if ctx ends first. Callers
// are concurrent.
type Barrier interface {
	Barrier(ctx context.Context) error
}

// Config names the source of campaigns and the sinks of notifications, and bounds the
// work of a lane.
type Config struct {
	takeover.Config

	// LiveCampaigns and LiveBytes bound the campaigns that one lane holds in
	// memory; beyond them the intake waits. Defaults 4096 and 8 MiB.
	LiveCampaigns int
	LiveBytes     int
	// Committed waits until the local subscriptions hold every change that was committed
	// in the source before the call, however fresh a join wants them. Default: the
	// barrier.
	Committed func(ctx context.Context) error
	// TrimLog: nobody but late subscribers needs the store's log of new subscriptions,
	// so it is kept no longer than the lanes need it.
	TrimLog bool

	// DrainTimeout bounds the time in which steps in flight are finished after Run's
	// context has ended. Default 10 s.
	DrainTimeout time.Duration
	// Limits hold from the start; SetLimits changes them.
	Limits Limits
	// Tracer follows campaigns; nil: nobody does, and notifications have no headers.
	Tracer Tracer
	// Durations receive how long campaigns and steps take.
	Durations Durations
}

func (c Config) withDefaults() Config {
	c.Config = c.WithDefaults()
	if c.LiveCampaigns <= 0 {
		c.LiveCampaigns = 4096
	}
	if c.LiveBytes <= 0 {
		c.LiveBytes = 8 << 20
	}
	if c.DrainTimeout <= 0 {
		c.DrainTimeout = 10 * time.Second
	}
	return c
}

// bounded runs fn under a timeout.
func bounded[T any](ctx context.Context, limit time.Duration, fn func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return fn(ctx)
}

// offsetsEvery is how often the lanes' positions are committed to the group, which
// only lag monitors read.
const offsetsEvery = 5 * time.Second

// Service runs the lanes that the consumer group assigns to this process. The group
// only assigns lanes; a TAKEOVER reads from Postgres and from the progress topic
// where a lane goes on.
type Service struct {
	cfg     Config
	store   *state.Store
	barrier Barrier

	readers         *sink.Readers
	connectionSlots chan struct{} // a token for each lane's own connection; nil: unbounded

	replaying      sync.Mutex // held by the replay under way
	indexCampaigns int        // see the constant
	recentLimit    int        // see the constant
	startLimit     int        // see maxWaitingStarts
	unmetPatience  time.Duration
	stepPatience   time.Duration // see the constant
	inputPatience  time.Duration
	now            func() time.Time // the clock by which campaigns start and end
	clockWatch     time.Duration    // see the constant
	trimEvery      time.Duration    // the same
	operatorLook   time.Duration    // the same
	clockEvery     time.Duration    // the same
	reachEvery     time.Duration    // the same

	maxAudience atomic.Int64 // see Limits
	pace        pace
	held        struct{ parked, paused atomic.Int64 } // campaigns of this service's lanes
	heldChanged atomic.Bool                           // campaigns were parked, or an operator did something: they are counted anew

	counters counters
	log      foldedLog
	recent   recentCampaigns
	traces   *campaignTraces
	toCount  chan *liveCampaign // whose audience is to be counted

	mu        sync.Mutex // guards the fields below
	lanes     map[int32]*laneHandle
	gone      map[int32]*lane // that the service has lost and nobody else is known to have: Status shows their last figures
	assigned  bool
	loss      *groupLoss // the group's error has taken all lanes; nil: it has not
	lastError string
	skew      time.Duration // how far our clock is ahead of Postgres', as of the last look
	skewOff   time.Duration // the largest error of skew
	clockOff  bool          // it is more than [sink.MaxSkew]
	unreached Unreached
	halts     chan *halt.Error
}

// laneHandle stops a lane: cancel, then wait for done.
type laneHandle struct {
	lane   *lane
	cancel context.CancelFunc
	done   chan struct{}
	ending laneEnding // Service.mu guards it
}

// laneEnding is why a lane was stopped. Its zero value: the service ends.
type laneEnding struct {
	given bool       // the group has given the lane to another daemon
	loss  *groupLoss // an error of the group; nobody knows who owns the lane next
}

// New makes a service; Run starts it.
func New(cfg Config, store *state.Store, barrier Barrier) *Service {
	cfg = cfg.withDefaults()
	s := &Service{
		cfg: cfg, store: store, barrier: barrier, indexCampaigns: indexCampaigns, recentLimit: recentLimit, startLimit: maxWaitingStarts, unmetPatience: takeover.UnmetPatience, stepPatience: takeover.PhasePatience, inputPatience: inputPatience, now: time.Now, clockWatch: clockWatch, trimEvery: trimEvery, operatorLook: operatorLook, clockEvery: clockEvery, reachEvery: reachEvery,
		log: foldedLog{log: cfg.Logger}, traces: newCampaignTraces(cfg.Tracer), toCount: make(chan *liveCampaign, countQueue), lanes: map[int32]*laneHandle{}, gone: map[int32]*lane{}, halts: make(chan *halt.Error, 1),
		readers: sink.NewReaders(cfg.Sink, cfg.Kafka.InstanceID),
	}
	s.SetLimits(cfg.Limits)
	if n := cfg.Sink.MaxConnections; n > 0 {
		s.connectionSlots = make(chan struct{}, max(1, n-cfg.Sink.ReaderCount()))
	}
	return s
}

// Run joins the group and works until ctx ends; then it drains the lanes and returns
// nil. It returns a *halt.Error when every lane of this service is halted, or when
// another daemon runs under the same instance id.
func (s *Service) Run(ctx context.Context) error {
	if err := s.store.ForgetAllDelivered(); err != nil { // of an earlier run
		return fmt.Errorf("clear delivered cache: %w", err)
	}
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		s.watchReach(watching)
	}()
	defer func() { stopWatching(); <-watched }()
	if err := s.awaitSinks(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // there is nothing to drain
		}
		return err
	}
	client, err := s.joinGroup(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	defer s.log.closeWindows()
	defer s.traces.endAll()
	defer s.stopAllLanes()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.watchGroup(ctx, client) })
	g.Go(func() error { return s.watchJoin(ctx, client) })
	g.Go(func() error { return s.reportOffsets(ctx, client) })
	g.Go(func() error { return s.watchInput(ctx, client) })
	g.Go(func() error { return s.keepRetention(ctx) })
	g.Go(func() error { return s.countAudiences(ctx) })
	g.Go(func() error { return s.watchOperators(ctx) })
	g.Go(func() error { return s.watchClock(ctx) })
	if s.cfg.Sink.LateSubscribers && s.cfg.TrimLog {
		g.Go(func() error { return s.trimLog(ctx) })
	}
	g.Go(func() error {
		select {
		case h := <-s.halts:
			return h
		case <-ctx.Done():
			return nil
		}
	})
	return g.Wait()
}

// awaitSinks waits until Postgres and Kafka answer and every precondition holds. A
// daemon that cannot work must not join the group: as a static member it would take
// the place of a healthy one of the same slot. awaitSinks returns ctx's error, or a
// *halt.Error for a precondition that stays violated.
func (s *Service) awaitSinks(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 100*time.Millisecond, 5*time.Second
	var violated takeover.ViolationWatch
	for {
		err := violated.HaltIfLasting(s.checkSinks(ctx), -1, s.unmetPatience)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			s.setLastError("")
			return nil
		}
		s.setLastError(err.Error())
		if halted, ok := errors.AsType[*halt.Error](err); ok {
			return halted
		}
		wait := pause.NextBackOff()
		s.cfg.Logger.Warn("cannot begin yet", "error", err, "again_in", wait.Round(time.Millisecond))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Service) checkSinks(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SinkTimeout)
	defer cancel()
	conn, err := s.cfg.Sink.Connect(ctx, "dinnerbell start")
	if err != nil {
		return err
	}
	defer sink.CloseConn(conn)
	report, err := takeover.ReadPreconditions(ctx, s.cfg.Config, precondition.AtStart, conn)
	if err := report.Unmet(err); err != nil {
		return err
	}
	for _, f := range slices.Concat(report.At(precondition.Warn), report.At(precondition.Unknown)) {
		s.warnOf(f)
	}
	return s.checkClock(ctx, conn)
}

// warnOf logs a precondition that stops nothing, with what mends it.
func (s *Service) warnOf(f precondition.Finding) {
	fix := cmp.Or(f.Fix, "dinnerbell doctor")
	f.Fix = "" // it has a field of its own
	if f.Level == precondition.Unknown {
		s.cfg.Logger.Warn("a setting of Postgres or Kafka could not be checked", "check", f.Name, "found", f.String(), "to_mend", fix)
		return
	}
	s.cfg.Logger.Warn("a setting of Postgres or Kafka will cause trouble later", "check", f.Name, "found", f.String(), "to_mend", fix)
}

func (s *Service) setLastError(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastError = text
}

// startLanes starts the lanes of newly assigned partitions.
func (s *Service) startLanes(ctx context.Context, partitions []int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.assigned, s.lastError = true, ""
	s.endGroupLossLocked()
	gone := s.gone
	s.gone = map[int32]*lane{} // of others, where they are not among the partitions
	for _, p := range partitions {
		if s.lanes[p] != nil || ctx.Err() != nil {
			continue
		}
		ctx, cancel := context.WithCancel(ctx)
		h := &laneHandle{lane: &lane{svc: s, id: p, assigned: time.Now(), replays: make(chan *laneReplay), status: LaneStatus{Partition: p, State: LaneTakeover}}, cancel: cancel, done: make(chan struct{})}
		if before := gone[p]; before != nil {
			h.lane.counts, h.lane.ended = before.lastFigures()
		}
		s.lanes[p] = h
		go func() {
			defer close(h.done)
			if err := h.lane.run(ctx); err != nil {
				s.noteHaltedLane(err)
			}
		}()
	}
}

// noteHaltedLane ends Run with the halt once no lane works any more.
func (s *Service) noteHaltedLane(err error) {
	var halted *halt.Error
	if !errors.As(err, &halted) {
		return
	}
	for _, l := range s.Status().Lanes {
		if l.State != LaneHalted {
			return
		}
	}
	select {
	case s.halts <- halted:
	default:
	}
}

// stopLanes stops lanes and waits for their end. Unless another daemon owns them next,
// Status goes on to show their last figures.
func (s *Service) stopLanes(partitions []int32, ending laneEnding) {
	var handles []*laneHandle
	s.mu.Lock()
	for _, p := range partitions {
		if h := s.lanes[p]; h != nil {
			handles = append(handles, h)
			delete(s.lanes, p)
			h.ending = ending
			if !ending.given {
				s.gone[p] = h.lane
			}
		}
	}
	s.mu.Unlock()
	for _, h := range handles {
		h.cancel()
	}
	for _, h := range handles {
		<-h.done
	}
}

func (s *Service) stopAllLanes() {
	s.mu.Lock()
	partitions := make([]int32, 0, len(s.lanes))
	for p := range s.lanes {
		partitions = append(partitions, p)
	}
	s.mu.Unlock()
	s.stopLanes(partitions, laneEnding{})
}

// reportOffsets commits the lanes' offsets to the group for lag monitors, until ctx
// ends. dinnerbell itself never reads them.
func (s *Service) reportOffsets(ctx context.Context, client *kgo.Client) error {
	tick := time.NewTicker(offsetsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.commitOffsets(ctx, client)
		}
	}
}

func (s *Service) commitOffsets(ctx context.Context, client *kgo.Client) {
	positions := map[int32]kgo.EpochOffset{}
	for _, l := range s.Status().Lanes {
		if l.State == LaneRunning {
			positions[l.Partition] = kgo.EpochOffset{Epoch: -1, Offset: l.NextOffset}
		}
	}
	if len(positions) == 0 {
		return
	}
	client.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{s.cfg.Kafka.Campaigns: positions}, nil)
}

const (
	// retentionFirst and retentionEvery are when campaign rows are looked through
	// for those that nobody needs any more.
	retentionFirst = time.Minute
	retentionEvery = time.Hour
	// retentionPage is how many rows are looked at in one statement.
	retentionPage = 5000
)

// keepRetention deletes ended campaigns, until ctx ends. It runs beside the lanes:
// however long it takes, no campaign waits for it. An error ends this round alone.
func (s *Service) keepRetention(ctx context.Context) error {
	reader := s.readers.Open()
	defer reader.Close()
	wait := time.NewTimer(retentionFirst)
	defer wait.Stop()
	for {
		select {
		case <-wait.C:
		case <-ctx.Done():
			return nil
		}
		deleted, err := s.cfg.Sink.Tables().DeleteEnded(ctx, reader, s.now().Add(-keepEnded), retentionPage, s.cfg.SinkTimeout)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.cfg.Logger.Warn("ended campaigns are not all deleted; they are tried again", "deleted", deleted, "error", err, "next_in", retentionEvery)
		case deleted > 0:
			s.cfg.Logger.Info("ended campaigns were deleted", "rows", deleted)
		}
		wait.Reset(retentionEvery)
	}
}
