package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/workload"
)

// byHand is the consumer that one would write instead, as a contender: the
// clock runs until its rows are committed and its records acknowledged.
type byHand struct {
	servers  *servers
	program  string
	broker   string
	db       *database
	dir      string
	in, out  string // topics
	producer *producer

	process *child
	records []*kgo.Record
	before  int64 // end of out before the run
}

func newByHand(ctx context.Context, s *servers, program, name, broker string, p *producer, t *population) (*byHand, error) {
	b := &byHand{servers: s, program: program, broker: broker, dir: filepath.Join(s.dir, name), in: name + ".campaigns", out: name + ".notifications", producer: p}
	if err := os.MkdirAll(b.dir, 0o750); err != nil {
		return nil, fmt.Errorf("make folder of %s: %w", name, err)
	}
	var err error
	if b.db, err = s.newDatabase(ctx, name); err != nil {
		return nil, err
	}
	// The fill ends with the VACUUM that index-only scans need.
	if err := b.db.fill(ctx, t); err != nil {
		return nil, err
	}
	// The index that its look-ups are answered from alone, and, like everybody,
	// the unique one.
	for _, sql := range []string{lookUpIndex, feedbackIndex} {
		if err := b.db.exec(ctx, sql); err != nil {
			return nil, err
		}
	}
	return b, p.createTopics(ctx, b.in, b.out)
}

// lookUpIndex is what `byhand -print-index` prints.
const lookUpIndex = `CREATE INDEX subscribers_restaurants_look_up ON public.subscribers_restaurants (restaurant_id, client_id)`

// launch starts the process; what is left over in its topic is worked on at once.
func (b *byHand) launch() error {
	var err error
	b.process, err = startChild(filepath.Join(b.dir, "byhand.log"), b.program, "-postgres", b.db.url, "-broker", b.broker,
		"-campaigns", b.in, "-notifications", b.out, "-group", b.in)
	return err
}

// start returns when the process works: it has delivered something.
func (b *byHand) start(ctx context.Context) error {
	if b.process != nil {
		return nil
	}
	if err := b.launch(); err != nil {
		return err
	}
	c, err := newCampaign(workload.RestaurantID(maxLanes), 0, 100)
	if err != nil {
		return err
	}
	return b.warmUp(ctx, &load{campaigns: []campaign{c}, lanes: 1})
}

func (b *byHand) prepare(ctx context.Context, l *load) error {
	if b.process == nil {
		if err := b.launch(); err != nil {
			return err
		}
	}
	b.records = encode(b.in, l)
	if err := b.warmUp(ctx, l); err != nil {
		return err
	}
	if err := b.db.reset(ctx); err != nil {
		return err
	}
	var err error
	b.before, err = b.producer.ends(ctx, b.out)
	return err
}

// warmUp delivers one small campaign per partition, as for the daemon. It also
// shows that the process has joined its group.
func (b *byHand) warmUp(ctx context.Context, l *load) error {
	for lane := range l.lanes {
		c := l.campaigns[0]
		c.lane = int32(lane)
		c.ID, c.Restaurant = fmt.Sprintf("%s-warm-%d", c.ID, lane), workload.RestaurantID(maxLanes+lane) // of the hundreds
		records := encode(b.in, &load{campaigns: []campaign{c}})
		before, err := b.producer.ends(ctx, b.out)
		if err != nil {
			return err
		}
		if err := b.producer.send(ctx, records...); err != nil {
			return err
		}
		if err := b.awaitEnd(ctx, before+100); err != nil {
			return err
		}
	}
	return nil
}

// awaitEnd waits until the output topic holds n records. It is written without
// transactions, so offsets count records.
func (b *byHand) awaitEnd(ctx context.Context, n int64) error {
	return b.process.awaitCount(ctx, n, func() (int64, error) { return b.producer.ends(ctx, b.out) })
}

// awaitCommitted waits until the group's offsets are at the end of the input.
func (b *byHand) awaitCommitted(ctx context.Context) error {
	end, err := b.producer.ends(ctx, b.in)
	if err != nil {
		return err
	}
	return b.process.awaitCount(ctx, end, func() (int64, error) {
		offsets, err := b.producer.adm.FetchOffsets(ctx, b.in)
		sum := int64(0)
		offsets.Each(func(o kadm.OffsetResponse) { sum += max(o.At, 0) })
		return sum, err
	})
}

func (b *byHand) deliver(ctx context.Context, l *load) error {
	if err := b.producer.send(ctx, b.records...); err != nil {
		return err
	}
	return b.awaitEnd(ctx, b.before+int64(l.total))
}

func (b *byHand) settle(ctx context.Context, l *load) error {
	rows, err := b.db.count(ctx, "public.subscribers_feedback")
	if err == nil && rows != int64(l.total) {
		err = fmt.Errorf("check feedback table of byhand: %d rows for %d notifications", rows, l.total)
	}
	if err != nil {
		return err
	}
	return b.stop()
}

func (b *byHand) stop() error {
	if b == nil || b.process == nil {
		return nil
	}
	c := b.process
	b.process = nil
	return c.Stop(stopLimit)
}

func (b *byHand) pid() int { return b.process.PID() }
