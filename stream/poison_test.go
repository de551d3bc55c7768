package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/testenv/envtest"
)

// Codecs as the attributes of a batch name them.
const (
	plainCodec = 0
	gzipCodec  = 1
	lz4Codec   = 3
	zstdCodec  = 4
)

// bomb gives the compressed records of a batch, each of a value of zeros.
func bomb(t testing.TB, codec int16, sizes ...int) []byte {
	t.Helper()
	var out bytes.Buffer
	var w interface {
		Write(p []byte) (int, error)
		Close() error
	}
	var err error
	switch codec {
	case gzipCodec:
		w = gzip.NewWriter(&out)
	case lz4Codec:
		w = lz4.NewWriter(&out)
	default:
		w, err = zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	}
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) {
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	zeros := make([]byte, 1<<20)
	for i, size := range sizes {
		write(recordHead(int64(i), size))
		for left := size; left > 0; left -= len(zeros) {
			write(zeros[:min(left, len(zeros))])
		}
		write([]byte{0}) // no headers
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// recordBody is a record without key from behind its length up to its value.
func recordBody(delta int64, value int) []byte {
	body := []byte{0}
	body = binary.AppendVarint(body, 0)
	body = binary.AppendVarint(body, delta)
	body = binary.AppendVarint(body, -1)
	return binary.AppendVarint(body, int64(value))
}

// recordHead is recordBody with the length before it.
func recordHead(delta int64, value int) []byte {
	body := recordBody(delta, value)
	return append(binary.AppendVarint(nil, int64(len(body)+value+1)), body...)
}

// plainRecord is a whole one.
func plainRecord(delta int64, value string) []byte {
	return append(append(recordHead(delta, len(value)), value...), 0)
}

// produceRaw writes one hand-made batch to a partition of the campaigns topic.
func (w *world) produceRaw(codec int16, count int32, records []byte) {
	w.Helper()
	client := w.kafka.Client()
	now := time.Now().UnixMilli()
	b := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, Attributes: codec, LastOffsetDelta: count - 1, FirstTimestamp: now, MaxTimestamp: now,
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: count, Records: records,
	}
	b.Length = int32(len(b.AppendTo(nil)) - batchLengthOffset)
	b.CRC = int32(crc32.Checksum(b.AppendTo(nil)[21:], castagnoli))
	details, err := kadm.NewClient(client).ListTopics(w.Context(), w.cfg.Kafka.Campaigns)
	if err != nil {
		w.Fatal(err)
	}
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 30000
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic, rt.TopicID = w.cfg.Kafka.Campaigns, details[w.cfg.Kafka.Campaigns].ID
	rp := kmsg.NewProduceRequestTopicPartition()
	rp.Records = b.AppendTo(nil)
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(w.Context(), client)
	if err != nil {
		w.Fatal(err)
	}
	if err := kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode); err != nil {
		w.Fatalf("produce a batch of codec %d: %v", codec, err)
	}
}

// refused waits for n dead letters and lists them by the offset that they came from.
func (w *world) refused(n int) map[int64]*DeadLetter {
	w.Helper()
	var out map[int64]*DeadLetter
	envtest.Until(w, patience, func() error {
		out = map[int64]*DeadLetter{}
		if err := ReadDeadLetters(w.Context(), w.cfg.ClaimConfig, func(d *DeadLetter) error { out[d.FromAt] = d; return nil }); err != nil {
			return err
		}
		if len(out) < n {
			return fmt.Errorf("%d dead letters, want %d", len(out), n)
		}
		return nil
	})
	return out
}

// heapPeak samples the heap until stop is called, and gives its peak above what
// it was.
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

// What a lane holds is bounded by what it weighs, not by how many campaigns and
// dead letters it is: large contents, and small batches of large headers. Not
// parallel: it measures the heap.
func TestLargeMessagesHoldLittleMemory(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(25)) // what is held, and little else
	const size, few = 900_000, 1
	for name, c := range map[string]struct{ messages, most int }{"contents": {70, 96}, "headers": {100, 96}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1, map[string][]string{"r1": clients("0000", few)})
			w.cfg.Logger = nil
			done := func(s *Service) int64 { return s.Status().Notifications.Shipped / few }
			if name == "contents" {
				for i := range c.messages {
					m := w.campaign(fmt.Sprint("c", i), "r1")
					m.Content = strings.Repeat("x", size)
					w.produceRaw(plainCodec, 1, plainRecord(0, string(encodeCampaign(m))))
				}
			} else {
				done = func(s *Service) int64 { return s.Status().Campaigns.Dead }
				w.produceRaw(zstdCodec, int32(c.messages), headerBomb(t, c.messages, size))
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

// headerBomb gives the compressed records of a batch, each with a header of so
// many bytes.
func headerBomb(t testing.TB, records, size int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		body := append(recordBody(int64(i), 0), 2, 2, 'h') // no value, one header, its key
		body = binary.AppendVarint(body, int64(size))
		body = append(body, make([]byte, size)...)
		if _, err := w.Write(append(binary.AppendVarint(nil, int64(len(body))), body...)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// A batch that inflates to more than a machine has, or that cannot be read, costs
// its own messages and nobody else's, and no memory. Not parallel: it measures the
// heap.
func TestPoisonBatchesGoToTheDeadLetters(t *testing.T) {
	if envtest.RealKafka() {
		t.Skip("Apache Kafka refuses most of these batches")
	}
	w := newWorld(t, 1, map[string][]string{"r1": clients("0000", 10)})
	w.cfg.Logger = nil
	w.produceRaw(zstdCodec, 2, bomb(t, zstdCodec, 700<<20, 600<<20))                              // 0, 1
	w.produceRaw(gzipCodec, 1, bomb(t, gzipCodec, 60<<20))                                        // 2
	w.produceRaw(lz4Codec, 1, bomb(t, lz4Codec, 30<<20))                                          // 3
	w.produceRaw(gzipCodec, 3, []byte("no gzip at all"))                                          // 4 to 6
	w.produceRaw(plainCodec, 5, append(plainRecord(0, "x"), plainRecord(1, "y")...))              // 7, 8, and 9 to 11
	w.produceRaw(plainCodec, 2, append(plainRecord(0, "x"), plainRecord(0, "again")...))          // 12, and 13
	w.produceRaw(zstdCodec, 1, bomb(t, zstdCodec, 100<<10))                                       // 14: no bomb
	w.produceRaw(plainCodec, 1, plainRecord(0, string(encodeCampaign(w.campaign("good", "r1"))))) // 15
	w.produceRaw(plainCodec, 1, binary.AppendVarint(nil, 1<<30))                                  // 16
	w.produceRaw(gzipCodec, 4, []byte("nothing follows that says where this batch ends"))         // 17 to 20
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
	if d := letters[2]; d != nil && (len(d.Value) != keptOfRecord || !strings.Contains(d.Truncated, "of 629")) {
		t.Errorf("what is left of a large message: %d bytes, %q", len(d.Value), d.Truncated)
	}
	w.read(0, 21)
	stop()
	w.start() // and nothing comes again
	w.produce(0, encodeCampaign(w.campaign("next", "r1")))
	w.expect(map[string][]string{"good": w.subs["r1"], "next": w.subs["r1"]})
}

// damagingConn damages what comes from the broker: every value that begins with
// the marker, while it is told to.
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

// damagedWorld is a world whose daemon has connections that damage.
func damagedWorld(t *testing.T, damages func() bool) *world {
	t.Helper()
	w := newWorld(t, 1, map[string][]string{"r1": clients("0000", 5)})
	plain := w.cfg.Kafka.Client
	w.cfg.Kafka.Client = func() ([]kgo.Opt, error) {
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
	w := damagedWorld(t, func() (first bool) { once.Do(func() { first = true }); return first })
	svc, _ := w.start()
	w.expect(map[string][]string{"before": w.subs["r1"], marker: w.subs["r1"], "behind": w.subs["r1"]})
	if dead := svc.Status().Campaigns.Dead; dead != 0 {
		t.Errorf("%d dead letters", dead)
	}
}

// A batch that is damaged where it is stored is a dead letter, and the lane goes
// on behind it. Its own last offset is not believed.
func TestBatchDamagedForGoodIsADeadLetter(t *testing.T) {
	t.Parallel()
	var seen atomic.Int64
	w := damagedWorld(t, func() bool { seen.Add(1); return true })
	w.start()
	w.expect(map[string][]string{"before": w.subs["r1"], "behind": w.subs["r1"]})
	if d := w.refused(1)[1]; d == nil || !strings.Contains(d.Reason, "offset 1 cannot be read: the batch's checksum does not match") {
		t.Errorf("dead letter %+v", d)
	}
	if seen.Load() < 2 {
		t.Errorf("the batch was read %d times", seen.Load())
	}
}
