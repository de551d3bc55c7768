package stream

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/envtest/rawbatch"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
	"dinnerbell/stream/topic/fetch"
)

// A flood of bad messages takes no turn of a fan-out: the steps carry as many clients as
// without the flood, and the next 500 messages beside them; a good campaign behind bad
// messages is served by the step that accepts it.
func TestFloodTakesNoTurns(t *testing.T) {
	t.Parallel()
	const most, small = 200, 3
	w := &deployment{TB: t, subs: map[string][]string{"whale": clients("0000", 40*most), "r1": clients("0001", small)}}
	store := w.openStore()
	svc := New(Config{Config: takeover.Config{StepClients: most}}, store, noBarrier{})
	d := newDecider(&lane{svc: svc}, svc.cfg)
	d.claim = &takeover.Claim{Feedback: sink.ContractTable(), Limits: topic.Limits{Notification: 1 << 20}}
	d.delivered = &deliveredCache{store: store}
	p := messageParser{limit: 1 << 20, letters: record.LetterMaker{Limit: 1 << 20}}
	offset := int64(0)
	enqueue := func(value []byte) {
		m := p.parseRecord(&fetch.Record{Offset: offset, Next: offset + 1, Value: value, Time: time.Now().UnixMilli()})
		m.fresh = time.Now()
		d.enqueueMessages(messageBatch{messages: []message{m}})
		offset++
	}
	fill := func() *step {
		st := newStep(d.claim.Feedback)
		if err := d.fillStep(st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	clientsOf := func(st *step, restaurant string) (n int) {
		for _, pick := range st.picks {
			if pick.live.RestaurantID == restaurant {
				n += pick.clients.Len()
			}
		}
		return n
	}
	enqueue(encodeCampaign(w.campaign("whale", "whale")))
	fill()
	// fillTwo fills two steps, each for a good campaign behind bad messages: one of them
	// is short.
	fillTwo := func(name string, bad int) (whale int) {
		for n := range 2 {
			for range bad {
				enqueue([]byte("no json"))
			}
			enqueue(encodeCampaign(w.campaign(fmt.Sprint(name, n), "r1")))
			st := fill()
			whale += clientsOf(st, "whale")
			if len(st.dead) != bad || clientsOf(st, "r1") != small || len(d.backlog) > 0 {
				t.Errorf("%s %d: %d dead letters, %d clients behind them, %d messages left", name, n, len(st.dead), clientsOf(st, "r1"), len(d.backlog))
			}
		}
		return whale
	}
	quiet := fillTwo("quiet ", 0)
	if quiet < most*3/4 {
		t.Fatalf("without a flood, two steps carry %d clients", quiet)
	}
	for n := range 10 {
		if got := fillTwo(fmt.Sprintf("flood %d ", n), intakeMessages-1); got != quiet {
			t.Errorf("flood %d: two steps carry %d clients of the fan-out, without the flood %d", n, got, quiet)
		}
	}
}

// Batches that cannot be read although their checksums match cost no further connection:
// the connection has not damaged them.
func TestUnreadableBatchesCostNoConnections(t *testing.T) {
	t.Parallel()
	if envtest.RealKafka() {
		t.Skip("Apache Kafka refuses such batches")
	}
	const batches = 200
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	var dials atomic.Int64
	plain := w.cfg.Kafka.ClientOptions
	w.cfg.Kafka.ClientOptions = func() ([]kgo.Opt, error) {
		opts, err := plain()
		return append(opts, kgo.Dialer(func(ctx context.Context, network, host string) (net.Conn, error) {
			dials.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, host)
		})), err
	}
	for range batches {
		w.produceRaw(rawbatch.Gzip, 1, []byte("no gzip"))
	}
	w.produce(0, encodeCampaign(w.campaign("good", "r1")))
	w.start()
	w.expect(map[string][]string{"good": {"a"}})
	if n := len(w.refused(batches)); n != batches {
		t.Errorf("%d dead letters", n)
	}
	if n := dials.Load(); n > batches/2 {
		t.Errorf("%d connections for %d batches", n, batches)
	}
}

// 100,000 bad messages: good ones among them and the other lane's, measured.
func TestLongFloodOfBadMessages(t *testing.T) {
	envtest.Long(t)
	const flood, every = 100_000, 1000
	defer debug.SetGCPercent(debug.SetGCPercent(25))
	took := map[string]time.Duration{}
	for _, kind := range []string{"bad", "good, nobody subscribes"} {
		w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 10), "whale": clients("0001", 40_000)})
		lines := &logLines{}
		w.cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
		client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(10*time.Millisecond))
		produce := func(value []byte) {
			client.Produce(t.Context(), &kgo.Record{Topic: w.cfg.Kafka.Campaigns, Value: value}, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Error(err)
				}
			})
		}
		produce(encodeCampaign(w.campaign("whale", "whale")))
		want := map[string][]string{"whale": w.subs["whale"]}
		for i := range flood {
			c := w.campaign(fmt.Sprint("c", i), "nobody")
			value := encodeCampaign(c)
			if kind == "bad" {
				value = []byte(strings.Replace(string(value), `"nobody"`, "7", 1))
			}
			produce(value)
			if i%every == every-1 {
				id := fmt.Sprint("good ", i)
				produce(encodeCampaign(w.campaign(id, "r1")))
				want[id] = w.subs["r1"]
			}
		}
		if err := client.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		peak := heapPeak()
		began := time.Now()
		svc, stop := w.start()
		envtest.Until(t, 10*time.Minute, func() error {
			if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = 'whale'`); n < 40_000 {
				return fmt.Errorf("%d clients of the whale", n)
			}
			return nil
		})
		whale := time.Since(began)
		w.awaitOffset(0, flood+flood/every+1)
		took[kind] = time.Since(began)
		mb := peak() >> 20
		s := svc.Status()
		t.Logf("%d messages (%s): %s, %.0f a second; whale of 40,000 beside them: %s; %d steps; heap +%d MB; %d log lines",
			flood, kind, took[kind].Round(time.Millisecond), flood/took[kind].Seconds(), whale.Round(time.Millisecond), s.Lanes[0].Decided, mb, len(lines.with("")))
		w.expect(want)
		if kind == "bad" && s.Letters != (campaign.ClassCounts{4: flood}) {
			t.Errorf("letters %v", s.Letters)
		}
		if n := len(lines.with("notif")); n > 3*(skipLogLines+1)*(2+int(took[kind]/skipLogWindow)) {
			t.Errorf("%d log lines", n)
		}
		if mb > 96 {
			t.Errorf("the heap grew by %d MB", mb)
		}
		stop()
	}
	if took["bad"] > 2*took["good, nobody subscribes"] {
		t.Errorf("a bad message costs more than twice a good one: %v", took)
	}
}
