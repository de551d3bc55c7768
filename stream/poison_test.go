package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/envtest/rawbatch"
	"dinnerbell/stream/operator"
	"dinnerbell/stream/topic/fetch"
)

// produceRaw writes one hand-made batch to a partition of the campaigns topic.
func (w *deployment) produceRaw(codec rawbatch.Codec, count int32, records []byte) {
	w.Helper()
	rawbatch.Produce(w, w.kafka.Client(), w.cfg.Kafka.Campaigns, codec, count, records)
}

// refused waits for n dead letters and lists them by the offset that they came from.
func (w *deployment) refused(n int) map[int64]*operator.DeadLetter {
	w.Helper()
	var out map[int64]*operator.DeadLetter
	envtest.Until(w, patience, func() error {
		out = map[int64]*operator.DeadLetter{}
		if err := operator.ReadDeadLetters(w.Context(), w.cfg.Kafka, slog.New(slog.DiscardHandler), operator.LetterFilter{}, func(d *operator.DeadLetter) error { out[d.FromAt] = d; return nil }); err != nil {
			return err
		}
		if len(out) < n {
			return fmt.Errorf("%d dead letters, want %d", len(out), n)
		}
		return nil
	})
	return out
}

// heapPeak samples the heap until stop is called, which returns the growth of the heap
// to its peak.
func heapPeak() (stop func() uint64) {
	runtime.GC()
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	before, peak := ms.HeapAlloc, ms.HeapAlloc
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			case <-time.After(2 * time.Millisecond):
				runtime.ReadMemStats(&ms)
				peak = max(peak, ms.HeapAlloc)
			}
		}
	}()
	return func() uint64 { close(end); <-done; return peak - before }
}

// The memory of a lane is bounded in bytes, not by how many campaigns and
// dead letters it is: large contents, and small batches of large headers. Not
// parallel: it measures the heap.
func TestLargeMessagesHoldLittleMemory(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(25)) // so that the heap is little more than the live memory
	const size, few = 900_000, 1
	for name, c := range map[string]struct{ messages, most int }{"contents": {70, 96}, "headers": {100, 96}} {
		t.Run(name, func(t *testing.T) {
			w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", few)})
			w.cfg.Logger = nil
			done := func(s *Service) int64 { return s.Status().Notifications.Shipped / few }
			if name == "contents" {
				for i := range c.messages {
					m := w.campaign(fmt.Sprint("c", i), "r1")
					m.Content = strings.Repeat("x", size)
					w.produceRaw(rawbatch.Plain, 1, rawbatch.Record(0, string(encodeCampaign(m))))
				}
			} else {
				done = func(s *Service) int64 { return s.Status().Campaigns.Dead }
				w.produceRaw(rawbatch.Zstd, int32(c.messages), rawbatch.HeaderBomb(t, c.messages, size))
			}
			peak := heapPeak()
			svc, stop := w.start()
			envtest.Until(t, patience, func() error {
				if n := done(svc); n < int64(c.messages) {
					return fmt.Errorf("%d of %d messages are done", n, c.messages)
				}
				return nil
			})
			mb := int(peak() >> 20)
			t.Logf("the heap grew by %d MB", mb)
			if mb > c.most {
				t.Errorf("the heap grew by %d MB, want %d at most", mb, c.most)
			}
			if n := w.db.Int(`SELECT coalesce(max(length(payload)), 0) FROM dinnerbell.outbox`); n > 8<<20 {
				t.Errorf("a step has %d bytes", n)
			}
			stop()
		})
	}
}

// A batch that inflates to more than a machine has, or that cannot be read, costs
// its own messages and nobody else's, and no memory. Not parallel: it measures the
// heap.
func TestPoisonBatchesGoToTheDeadLetters(t *testing.T) {
	if envtest.RealKafka() {
		t.Skip("Apache Kafka refuses most of these batches")
	}
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 10)})
	w.cfg.Logger = nil
	w.produceRaw(rawbatch.Zstd, 2, rawbatch.Bomb(t, rawbatch.Zstd, 700<<20, 600<<20))                     // 0, 1
	w.produceRaw(rawbatch.Gzip, 1, rawbatch.Bomb(t, rawbatch.Gzip, 60<<20))                               // 2
	w.produceRaw(rawbatch.LZ4, 1, rawbatch.Bomb(t, rawbatch.LZ4, 30<<20))                                 // 3
	w.produceRaw(rawbatch.Gzip, 3, []byte("no gzip at all"))                                              // 4 to 6
	w.produceRaw(rawbatch.Plain, 5, append(rawbatch.Record(0, "x"), rawbatch.Record(1, "y")...))          // 7, 8, and 9 to 11
	w.produceRaw(rawbatch.Plain, 2, append(rawbatch.Record(0, "x"), rawbatch.Record(0, "again")...))      // 12, and 13
	w.produceRaw(rawbatch.Zstd, 1, rawbatch.Bomb(t, rawbatch.Zstd, 100<<10))                              // 14: no bomb
	w.produceRaw(rawbatch.Plain, 1, rawbatch.Record(0, string(encodeCampaign(w.campaign("good", "r1"))))) // 15
	w.produceRaw(rawbatch.Plain, 1, binary.AppendVarint(nil, 1<<30))                                      // 16
	w.produceRaw(rawbatch.Gzip, 4, []byte("nothing follows that says where this batch ends"))             // 17 to 20
	peak := heapPeak()
	_, stop := w.start()
	w.expect(map[string][]string{"good": w.subs["r1"]})
	letters := w.refused(13)
	if mb := peak() >> 20; mb > 64 {
		t.Errorf("the heap grew by %d MB", mb)
	}
	for offset, reason := range map[int64]string{
		0: "takes 734", 1: "inflates to more than", 2: "takes 629", 3: "takes 314", 4: "offsets 4 to 6 cannot be read", 7: "JSON", 8: "JSON",
		9: "offsets 9 to 11 cannot be read: the batch claims 5 records and holds 2", 12: "JSON", 13: "not in its place", 14: "JSON",
		16: "offset 16 cannot be read", 17: "offsets 17 to 20 cannot be read",
	} {
		if d := letters[offset]; d == nil || !strings.Contains(d.Reason, reason) {
			t.Errorf("offset %d: %+v, want a reason with %q", offset, d, reason)
		}
	}
	if d := letters[2]; d != nil && (len(d.Value) != fetch.CutRecordBytes || !strings.Contains(d.Truncated, "of 629")) {
		t.Errorf("what is left of a large message: %d bytes, %q", len(d.Value), d.Truncated)
	}
	w.awaitOffset(0, 21)
	stop()
	w.start() // and nothing comes again
	w.produce(0, encodeCampaign(w.campaign("next", "r1")))
	w.expect(map[string][]string{"good": w.subs["r1"], "next": w.subs["r1"]})
}

// damagingConn damages, while it is switched on, every value from the broker that
// begins with the marker.
type damagingConn struct {
	net.Conn
	damages func() bool
}

const marker = "DAMAGE-ME"

func (c *damagingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if i := bytes.Index(p[:n], []byte(marker)); i >= 0 && c.damages() {
		p[i] ^= 1
	}
	return n, err
}

// newDamagedDeployment returns a deployment whose daemon has damaging connections.
func newDamagedDeployment(t *testing.T, damages func() bool) *deployment {
	t.Helper()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 5)})
	plain := w.cfg.Kafka.ClientOptions
	w.cfg.Kafka.ClientOptions = func() ([]kgo.Opt, error) {
		opts, err := plain()
		return append(opts, kgo.Dialer(func(ctx context.Context, network, host string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, host)
			if err != nil {
				return nil, err
			}
			return &damagingConn{Conn: conn, damages: damages}, nil
		})), err
	}
	client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()))
	for _, id := range []string{"before", marker, "behind"} {
		c := w.campaign(id, "r1")
		c.Content = id
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: w.cfg.Kafka.Campaigns, Value: encodeCampaign(c)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// A batch that was damaged on its way is read again over a new connection.
func TestBatchDamagedOnItsWayIsReadAgain(t *testing.T) {
	t.Parallel()
	var once sync.Once
	w := newDamagedDeployment(t, func() (first bool) { once.Do(func() { first = true }); return first })
	svc, _ := w.start()
	w.expect(map[string][]string{"before": w.subs["r1"], marker: w.subs["r1"], "behind": w.subs["r1"]})
	if dead := svc.Status().Campaigns.Dead; dead != 0 {
		t.Errorf("%d dead letters", dead)
	}
}

// A batch that is damaged where it is stored is a dead letter, and the lane goes on
// behind it. The reader does not trust the batch's own last offset.
func TestBatchDamagedForGoodIsADeadLetter(t *testing.T) {
	t.Parallel()
	var seen atomic.Int64
	w := newDamagedDeployment(t, func() bool { seen.Add(1); return true })
	w.start()
	w.expect(map[string][]string{"before": w.subs["r1"], "behind": w.subs["r1"]})
	if d := w.refused(1)[1]; d == nil || !strings.Contains(d.Reason, "offset 1 cannot be read: the batch's checksum does not match") {
		t.Errorf("dead letter %+v", d)
	}
	if seen.Load() < 2 {
		t.Errorf("the batch was read %d times", seen.Load())
	}
}
