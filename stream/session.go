package stream

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

// session is one ownership of a lane: from a TAKEOVER until the lane is
// stopped or anything goes wrong. It is never mended, only replaced.
type session struct {
	lane *lane
	cfg  Config
	t    tables
	step watchedStep // of the takeover

	sink    *pgx.Conn       // the commit goroutine's
	counted bool            // among the lanes' own connections
	sql     *stepStatements // prepared on sink
	ahead   time.Duration   // how far our clock is ahead of Postgres' at most
	reader  *readers        // shared by all lanes; nil before openSink
	client  *kgo.Client     // intake fetches, ship produces

	table       *feedbackTable // as of the takeover; each step's transaction compares it
	ids         topicIDs
	known       knownIDs
	recordLimit int      // bytes that the notifications topic accepts per batch
	deadLimit   int      // the same of the dead-letter topic
	guessed     []string // topics of the two whose limit may not be read
	bootstrap   string   // a broker's address, for the commands that errors name

	epoch int64
	seq   int64 // P at the takeover
	// what Postgres knew of Kafka as of the last step: neither may be less now
	shippedBefore int64
	topicEnds     []int64
	progressLost  *progressLostError // the progress partition does not say K; nil where it does
	nextOffset    int64              // at the takeover
	totals        totals
	pending       []*payload // decided and not shipped at the takeover

	agenda   *agenda
	shut     bool            // the last batch waited for the barrier in vain; intake's
	arrivals chan arrival    // intake → decide
	due      chan []*live    // agenda → decide: campaigns to be joined; the barrier is behind them
	steps    chan *step      // decide → commit
	departed chan *departure // commit → ship, in order
	shipped  atomic.Int64    // K
	ends     topicEnds       // of the notifications topic, as acknowledged
	advanced chan struct{}   // K has advanced; one token
	caches   caches

	corrected correctedKeys // commit → decide
	buffers   chan []byte   // of COPY data that is sent; decide fills them again
}

// totals are the lane's counters since its deployment began.
type totals struct{ notified, expired, dead int64 }

// run works until soft ends or something fails. When soft ends, intake and
// decide stop, and what is in flight is committed and shipped, bounded by the
// drain timeout. It returns when all its goroutines have ended.
func (s *session) run(soft context.Context) error {
	s.arrivals = make(chan arrival)
	s.due = make(chan []*live)
	s.steps = make(chan *step)
	s.departed = make(chan *departure, s.cfg.Window+len(s.pending))
	s.advanced = make(chan struct{}, 1)
	s.buffers = make(chan []byte, 4) // one step is built, one waits, two are in flight
	for _, p := range s.pending {
		s.departed <- decided(p)
	}
	s.pending = nil

	hard, cancelHard := context.WithCancel(context.WithoutCancel(soft))
	defer cancelHard()
	stopDrain := context.AfterFunc(soft, func() { time.AfterFunc(s.cfg.DrainTimeout, cancelHard) })
	defer stopDrain()

	g, hard := errgroup.WithContext(hard)
	soft, cancelSoft := context.WithCancel(soft)
	defer cancelSoft()
	defer context.AfterFunc(hard, cancelSoft)() // a failure stops intake and decide too

	g.Go(func() error { return ignoreEnd(soft, s.intake(soft)) })
	g.Go(func() error { return ignoreEnd(soft, s.keepAgenda(soft)) })
	g.Go(func() error { return ignoreEnd(soft, s.serveReplays(soft)) })
	g.Go(func() error { defer close(s.steps); return ignoreEnd(soft, newDecider(s).run(soft)) })
	g.Go(func() error { defer close(s.departed); return s.commitAll(hard) })
	g.Go(func() error { return s.shipAll(hard) })
	return g.Wait()
}

// ignoreEnd turns the error of a goroutine that was told to stop into none:
// the reason is somebody else's error or an orderly end.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// close ends the session's connections. It is bounded: closing a client whose
// broker is gone has been seen to hang (franz-go issues 753, 754).
func (s *session) close() {
	s.forget()
	if s.sink != nil {
		closeConn(s.sink)
	}
	if s.counted {
		<-s.lane.svc.steps
	}
	if s.reader != nil {
		s.reader.close()
	}
	if s.client == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.client.Close()
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		s.cfg.Logger.Warn("kafka client is slow to close; going on without it", "lane", s.lane.id)
	}
}
