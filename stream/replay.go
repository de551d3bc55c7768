package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/topic"
	"dinnerbell/stream/topic/fetch"
)

// A replay reads a part of the campaigns topic again and joins the campaigns that are
// still valid once more, so that every missed client is notified. It moves no offset
// and bypasses nothing: each message passes through the lane's own steps, as an edit
// does that joins again, and Postgres decides who has the campaign. So a crash in the
// middle leaves nothing to mend: the next owner delivers the accepted campaigns, and a
// replay that is run again finds no new clients.
//
// "The newest message wins" must hold in a replay too, and a message whose campaign row
// is gone has no row in Postgres to be compared with. So the replay first indexes the
// topic (newest_index.go), to learn which messages of the range are not the newest of
// their campaign.

// ReplayRequest selects the part of the campaigns topic that is read again.
type ReplayRequest struct {
	From ReplayStart
	// Until ends the range before the first message of this time or later. The zero
	// time ends it at each lane's next offset.
	Until time.Time
	// DryRun counts and changes nothing.
	DryRun bool
}

// ReplayStart is the start of each lane's range: Offsets, the first message of Time or
// later, or, without both, the earliest message of the partition.
type ReplayStart struct {
	Time    time.Time
	Offsets map[int32]int64 // by partition; a partition that is not named is read from its beginning
}

// ReplayReport is the result of a replay.
type ReplayReport struct {
	DryRun bool `json:"dry_run"`
	ReplayCounts
	Lanes []ReplayLane `json:"lanes"`
}

// ReplayCounts counts messages; each of them is one of Dead, Expired, Superseded, Held,
// Scheduled and Valid. Have and Notified count clients: Have those who had a valid
// campaign before, Notified those who were missed and have it now (in a dry run, who
// would get it).
type ReplayCounts struct {
	Messages   int64 `json:"messages"`
	Dead       int64 `json:"dead"`       // no campaigns
	Expired    int64 `json:"expired"`    // their end has passed
	Superseded int64 `json:"superseded"` // the topic or the campaign table has a newer message of the campaign
	Held       int64 `json:"held"`       // an operator cancelled or paused the campaign, or it is parked
	Scheduled  int64 `json:"scheduled"`  // their start lies ahead
	Valid      int64 `json:"valid"`
	Have       int64 `json:"have"`
	Notified   int64 `json:"notified"`
}

// ReplayLane is the range of one partition, from offset From to before offset Until.
type ReplayLane struct {
	Partition int32 `json:"partition"`
	From      int64 `json:"from"`
	Until     int64 `json:"until"`
	// NotCovered is the reason why this daemon has not replayed the whole range.
	NotCovered string `json:"not_covered,omitempty"`
}

func (c *ReplayCounts) addCounts(o ReplayCounts) {
	c.Messages += o.Messages
	c.Dead += o.Dead
	c.Expired += o.Expired
	c.Superseded += o.Superseded
	c.Held += o.Held
	c.Scheduled += o.Scheduled
	c.Valid += o.Valid
	c.Have += o.Have
	c.Notified += o.Notified
}

// ErrReplayUnderWay is returned to a second replay: a daemon runs one at a time.
var ErrReplayUnderWay = errors.New("a replay is under way in this daemon already")

// Replay reads the range again on the lanes that this daemon has, and returns once the
// missed clients are decided. The report names the lanes of other daemons. progress may
// be nil; it is called from several goroutines. When ctx ends, reading ends; campaigns
// that were accepted by then are delivered all the same.
func (s *Service) Replay(ctx context.Context, req ReplayRequest, progress func(stage string, done, total int64)) (*ReplayReport, error) {
	if !s.replaying.TryLock() {
		return nil, ErrReplayUnderWay
	}
	defer s.replaying.Unlock()
	if progress == nil {
		progress = func(string, int64, int64) {}
	}
	r := &replay{svc: s, dryRun: req.DryRun, progress: progress, report: &ReplayReport{DryRun: req.DryRun}}
	defer r.close()
	report, err := r.replayMessages(ctx, req)
	return report, s.explainDenied(ctx, err)
}

// explainDenied adds to an error of Postgres about a missing right the statements that
// grant it.
func (s *Service) explainDenied(ctx context.Context, err error) error {
	return sink.ExplainDeniedAnew(ctx, s.cfg.Sink, sink.RunningRights, err)
}

func (r *replay) replayMessages(ctx context.Context, req ReplayRequest) (*ReplayReport, error) {
	if err := r.connectClients(ctx); err != nil {
		return nil, err
	}
	if err := r.findRanges(ctx, req); err != nil {
		return nil, err
	}
	for shares := []hashRange{{}}; len(shares) > 0; {
		p, rest, err := r.indexNewest(ctx, shares[0])
		if err != nil {
			return nil, err
		}
		shares = append(rest, shares[1:]...)
		if err := r.replayRange(ctx, p); err != nil {
			return nil, err
		}
	}
	return r.report, nil
}

// replay is one replay in progress.
type replay struct {
	svc      *Service
	dryRun   bool
	progress func(stage string, done, total int64)
	client   *kgo.Client       // nil before connect
	reader   *sink.Readers     // nil before connect
	messages *messageInspector // of no lane
	limits   topic.Limits
	topicID  [16]byte // of the campaigns topic
	topicTxt string
	cluster  string
	ranges   []laneRange

	mu     sync.Mutex // guards the fields below
	report *ReplayReport
	done   int64 // offsets of the hash range that are done
	total  int64
}

// connectClients connects to Kafka and Postgres, and reads the feedback table's columns and the
// topics' limits.
func (r *replay) connectClients(ctx context.Context) (err error) {
	cfg := r.svc.cfg
	r.reader = r.svc.readers.Open()
	client, err := cfg.Kafka.NewClient()
	if err != nil {
		return err
	}
	r.client = client
	found, err := topic.ReadCluster(ctx, r.client, cfg.Kafka)
	if err != nil {
		return err
	}
	if err := found.Topics[cfg.Kafka.Campaigns].Err; err != nil {
		return cfg.Kafka.ExplainUndescribed(err, r.client, "Read", cfg.Kafka.Campaigns)
	}
	look, err := sink.ReadCatalogue(ctx, r.reader, cfg.Sink.Tables())
	if err != nil {
		return err
	}
	if err := look.Report().Unmet(nil); err != nil {
		return err
	}
	r.limits = topic.NewLimits(found, cfg.Kafka)
	r.messages = newMessageInspector(cfg.Config, -1, look.Feedback, r.limits, r.reader, r.svc.store)
	ids := found.IDs(cfg.Kafka)
	r.cluster, r.topicTxt, r.topicID = ids.Cluster, ids.Campaigns, found.Topics[cfg.Kafka.Campaigns].ID
	return nil
}

func (r *replay) close() {
	if r.messages != nil {
		r.messages.delivered.forgetAll()
	}
	if r.reader != nil {
		r.reader.Close()
	}
	if r.client != nil {
		topic.CloseClient(r.client, r.svc.cfg.Logger, -1)
	}
}

// replayRange replays the campaigns of one hash range on all lanes.
func (r *replay) replayRange(ctx context.Context, p *newestIndex) error {
	lanes := r.laneReplays(ctx, p)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.mu.Lock()
	r.done, r.total = 0, 0
	for _, l := range lanes {
		r.total += l.until - l.from
	}
	r.mu.Unlock()
	var g errgroup.Group
	if r.dryRun {
		g.SetLimit(1) // the lanes share the inspector
		defer r.messages.delivered.forgetAll()
	}
	for _, l := range lanes {
		g.Go(func() error {
			err := l.run(ctx)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				r.noteNotCovered(l.id, r.svc.explainDenied(ctx, err).Error())
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.report.addCounts(l.counts)
			return nil
		})
	}
	return g.Wait()
}

// laneReplays lists the lanes that this daemon can replay, and notes the others in the
// report, unless ctx ends.
func (r *replay) laneReplays(ctx context.Context, p *newestIndex) []*laneReplay {
	var out []*laneReplay
	for _, rg := range r.ranges {
		if rg.from >= rg.until {
			continue
		}
		r.svc.mu.Lock()
		h := r.svc.lanes[rg.lane]
		r.svc.mu.Unlock()
		if h == nil {
			if why := r.svc.explainNotOwned(ctx); ctx.Err() == nil {
				r.noteNotCovered(rg.lane, why.Error())
			}
			continue
		}
		out = append(out, &laneReplay{
			replay: r, ctx: ctx, handle: h, id: rg.lane, from: rg.from, until: rg.until, next: rg.from,
			index: p, open: map[campaign.Key]int64{}, wake: make(chan struct{}, 1), result: make(chan error, 1),
		})
	}
	return out
}

// noteNotCovered puts the first reason why a lane is not covered into the report.
func (r *replay) noteNotCovered(lane int32, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.report.Lanes, func(l ReplayLane) bool { return l.Partition == lane })
	if r.report.Lanes[i].NotCovered == "" {
		r.report.Lanes[i].NotCovered = why
	}
}

// addProgress notes that n more offsets of the hash range are done.
func (r *replay) addProgress(n int64) {
	r.mu.Lock()
	r.done += n
	done, total := r.done, r.total
	r.mu.Unlock()
	r.progress("replay", done, total)
}

// laneRange is the range of one partition that is read again.
type laneRange struct {
	lane        int32
	from, until int64
	start, next int64 // the log's first offset; the lane's next offset
}

// findRanges resolves the request to a range for every lane of the deployment.
func (r *replay) findRanges(ctx context.Context, req ReplayRequest) error {
	lanes, err := r.svc.cfg.Sink.Tables().ReadLaneOffsets(ctx, r.reader, r.cluster, r.topicTxt)
	if err != nil {
		return err
	}
	for _, l := range lanes {
		if !l.SameTopic {
			return fmt.Errorf("lane %d counts in another topic than the %s that is there; it is halted, see `dinnerbell status`", l.Lane, r.svc.cfg.Kafka.Campaigns)
		}
		r.ranges = append(r.ranges, laneRange{lane: l.Lane, next: l.NextOffset})
	}
	f, err := r.findOffsets(ctx, req)
	if err != nil {
		return err
	}
	for i := range r.ranges {
		rg := &r.ranges[i]
		if err := f.resolveRange(rg, req); err != nil {
			return r.explainUnread(err)
		}
		r.report.Lanes = append(r.report.Lanes, ReplayLane{Partition: rg.lane, From: rg.from, Until: rg.until})
	}
	return nil
}

// requestedOffsets are the offsets of the campaigns topic for a request's times.
type requestedOffsets struct {
	topic               string
	starts, from, until kadm.ListedOffsets // from and until are nil where the request gives no time
}

// findOffsets asks the broker for the offsets of the request's times.
func (r *replay) findOffsets(ctx context.Context, req ReplayRequest) (f requestedOffsets, err error) {
	f.topic = r.svc.cfg.Kafka.Campaigns
	adm := kadm.NewClient(r.client)
	if f.starts, err = adm.ListStartOffsets(ctx, f.topic); err != nil {
		return f, r.explainUnlisted(err)
	}
	if !req.From.Time.IsZero() {
		if f.from, err = adm.ListOffsetsAfterMilli(ctx, req.From.Time.UnixMilli(), f.topic); err != nil {
			return f, r.explainUnlisted(err)
		}
	}
	if !req.Until.IsZero() {
		if f.until, err = adm.ListOffsetsAfterMilli(ctx, req.Until.UnixMilli(), f.topic); err != nil {
			return f, r.explainUnlisted(err)
		}
	}
	return f, nil
}

// explainUnlisted returns the error of a request for offsets of the campaigns topic.
func (r *replay) explainUnlisted(err error) error {
	return fmt.Errorf("list offsets of topic %s: %w", r.svc.cfg.Kafka.Campaigns, r.explainUnread(err))
}

// explainUnread adds to an error about the campaigns topic what grants the right to read it.
func (r *replay) explainUnread(err error) error {
	return r.svc.cfg.Kafka.ExplainDenied(err, r.client, "Read", r.svc.cfg.Kafka.Campaigns)
}

// offsetOf returns a partition's offset in a list, or the error why the list has no such
// offset.
func (f *requestedOffsets) offsetOf(list kadm.ListedOffsets, lane int32) (kadm.ListedOffset, error) {
	o, ok := list.Lookup(f.topic, lane)
	if !ok {
		return o, fmt.Errorf("list offsets of %s/%d: the broker does not know the partition", f.topic, lane)
	}
	if o.Err != nil {
		return o, fmt.Errorf("list offsets of %s/%d: %w", f.topic, lane, o.Err)
	}
	return o, nil
}

// resolveRange fills in the range. A requested part that the topic no longer holds is an
// error: a part that is missing must not pass for an empty one.
func (f *requestedOffsets) resolveRange(rg *laneRange, req ReplayRequest) error {
	start, err := f.offsetOf(f.starts, rg.lane)
	if err != nil {
		return err
	}
	rg.start, rg.from, rg.until = start.Offset, start.Offset, rg.next
	if f.from != nil {
		after, err := f.offsetOf(f.from, rg.lane)
		if err != nil {
			return err
		}
		// The first message of the log is younger than the time, and messages before it
		// were deleted. A partition without a message of that time has no timestamp here.
		if after.Offset <= start.Offset && start.Offset > 0 && after.Timestamp > req.From.Time.UnixMilli() {
			return fmt.Errorf("%s/%d begins at offset %d, of %s: what came after %s and before that is deleted; read what is there: dinnerbell replay --from earliest",
				f.topic, rg.lane, start.Offset, time.UnixMilli(after.Timestamp).UTC().Format(time.RFC3339), req.From.Time.UTC().Format(time.RFC3339))
		}
		rg.from = max(start.Offset, after.Offset)
	}
	if at, ok := req.From.Offsets[rg.lane]; ok {
		if at < start.Offset {
			return fmt.Errorf("%s/%d begins at offset %d: offsets %d to %d are deleted; read what is there: dinnerbell replay --from earliest",
				f.topic, rg.lane, start.Offset, at, start.Offset-1)
		}
		rg.from = at
	}
	if f.until != nil {
		before, err := f.offsetOf(f.until, rg.lane)
		if err != nil {
			return err
		}
		rg.until = min(rg.until, before.Offset)
	}
	rg.until = max(rg.until, rg.start)
	rg.from = min(rg.from, rg.until)
	return nil
}

// readOffsets calls fn for each record of [from, until) of a partition, in order.
func (r *replay) readOffsets(ctx context.Context, lane int32, from, until int64, fn func(*fetch.Record) error) error {
	name := r.svc.cfg.Kafka.Campaigns
	p := fetch.PartitionReader{Client: r.client, NewClient: r.svc.cfg.Kafka.NewClient, Topic: name, TopicID: r.topicID, Partition: lane, MaxRecord: r.limits.MaxCampaign()}
	err := p.ReadRange(ctx, from, until, fn)
	if errors.Is(err, kerr.OffsetOutOfRange) {
		return fmt.Errorf("read %s/%d: it was deleted from the topic meanwhile; read what is there: dinnerbell replay --from earliest: %w", name, lane, err)
	}
	if err != nil {
		return fmt.Errorf("read %s/%d: %w", name, lane, r.explainUnread(err))
	}
	return nil
}
