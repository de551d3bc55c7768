package stream

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
)

// produceTxn writes messages in one transaction and commits or aborts it.
func (w *world) produceTxn(client *kgo.Client, end kgo.TransactionEndTry, values ...[]byte) {
	w.Helper()
	if err := client.BeginTransaction(); err != nil {
		w.Fatal(err)
	}
	for _, v := range values {
		if err := client.ProduceSync(w.Context(), &kgo.Record{Topic: w.cfg.Kafka.Campaigns, Value: v}).FirstErr(); err != nil {
			w.Fatal(err)
		}
	}
	if err := client.EndTransaction(w.Context(), end); err != nil {
		w.Fatal(err)
	}
}

// Markers and aborted messages are passed: next_offset comes to the log's end, so
// that retention may take all of it, and the group has no lag. They cost few steps.
func TestMarkersAndAbortedMessagesArePassed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, map[string][]string{"r1": clients("0000", 20)})
	svc, stop := w.start()
	client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionalID(envtest.Name("producer")))
	w.produceTxn(client, kgo.TryCommit, encodeCampaign(w.campaign("c1", "r1")))
	const aborted = 40
	began := time.Now()
	for i := range aborted {
		w.produceTxn(client, kgo.TryAbort, encodeCampaign(w.campaign(fmt.Sprint("x", i), "r1")))
	}
	w.expect(map[string][]string{"c1": w.subs["r1"]})
	adm := kadm.NewClient(w.kafka.Client())
	end, err := listOffset(t.Context(), w.cfg.Kafka.Campaigns, 0, adm.ListEndOffsets)
	if err != nil {
		t.Fatal(err)
	}
	w.read(0, end.Offset)
	if steps, most := svc.Status().Lanes[0].Decided, int64(4+time.Since(began)/passEvery); steps > most {
		t.Errorf("%d steps for one campaign and %d aborted ones, want %d at most", steps, aborted, most)
	}
	envtest.Until(t, patience, func() error {
		lags, err := adm.Lag(t.Context(), w.cfg.Kafka.Group)
		if err != nil {
			return err
		}
		group := lags[w.cfg.Kafka.Group]
		lag, ok := group.Lag.Lookup(w.cfg.Kafka.Campaigns, 0)
		if !ok || lag.Lag != 0 {
			return fmt.Errorf("lag %+v (%v)", lag, ok)
		}
		return nil
	})
	stop()
	w.deleteRecords(w.cfg.Kafka.Campaigns, 0)
	w.start()
	w.produceTxn(client, kgo.TryCommit, encodeCampaign(w.campaign("c2", "r1")))
	w.expect(map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r1"]})
}

// A batch is read here as a consumer reads it, whatever its codec.
func TestBatchesAreReadAsAConsumerReadsThem(t *testing.T) {
	t.Parallel()
	cluster := envtest.Kafka(t)
	topic := cluster.Topic("codecs", 1, nil)
	for name, codec := range map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	} {
		client := cluster.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(codec), kgo.ProducerLinger(100*time.Millisecond), kgo.ProducerBatchMaxBytes(defaultMaxMessage))
		for i := range 50 {
			r := &kgo.Record{Topic: topic, Value: bytes.Repeat([]byte(name), i*i), Timestamp: time.UnixMilli(1_700_000_000_000 + int64(i))}
			switch i % 4 {
			case 1:
				r.Key = []byte{}
			case 2:
				r.Key, r.Headers = []byte(name), []kgo.RecordHeader{{Key: "h", Value: []byte("v")}, {Key: "", Value: nil}}
			case 3:
				r.Value = nil
			}
			client.Produce(t.Context(), r, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Error(err)
				}
			})
		}
		if err := client.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want := cluster.ReadAll(topic)
	adm := kadm.NewClient(cluster.Client())
	details, err := adm.ListTopics(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	p := partitionReader{client: cluster.Client(), topic: topic, topicID: details[topic].ID}
	for _, from := range []int64{0, 7, 120, int64(len(want)) - 1} { // in the middle of batches, too
		i := from
		err := p.eachReadable(t.Context(), from, int64(len(want)), func(r *record) error {
			if err := sameRecord(r, want[i]); err != nil {
				return fmt.Errorf("record %d: %w", i, err)
			}
			i++
			return nil
		})
		if err != nil || i != int64(len(want)) {
			t.Errorf("from %d: %d of %d records (%v)", from, i, len(want), err)
		}
	}
}

func sameRecord(got *record, want *kgo.Record) error {
	var headers []kgo.RecordHeader
	whole := got.eachHeader(func(key string, value []byte) { headers = append(headers, kgo.RecordHeader{Key: key, Value: value}) })
	same := whole && slices.EqualFunc(headers, want.Headers, func(a, b kgo.RecordHeader) bool {
		return a.Key == b.Key && bytes.Equal(a.Value, b.Value) && (a.Value == nil) == (b.Value == nil)
	})
	switch {
	case got.offset != want.Offset, got.time != want.Timestamp.UnixMilli():
		return fmt.Errorf("offset %d, time %d; want %d, %d", got.offset, got.time, want.Offset, want.Timestamp.UnixMilli())
	case !bytes.Equal(got.key, want.Key), !bytes.Equal(got.value, want.Value), (got.key == nil) != (want.Key == nil), (got.value == nil) != (want.Value == nil):
		return fmt.Errorf("key %q, value %.20q; want %q, %.20q", got.key, got.value, want.Key, want.Value)
	case !same:
		return fmt.Errorf("headers %v, want %v", headers, want.Headers)
	}
	return nil
}

// No bytes make the reader panic, hold more than the bound, or go round.
func FuzzReadBatch(f *testing.F) {
	for _, codec := range []int16{plainCodec, gzipCodec, 2, lz4Codec, zstdCodec} {
		f.Add(codec, int32(2), append(plainRecord(0, "x"), plainRecord(1, strings.Repeat("y", 300))...))
	}
	f.Add(int16(zstdCodec), int32(1), bomb(f, zstdCodec, 1<<20))
	f.Add(int16(2), int32(1), append(append([]byte{}, xerialMagic...), make([]byte, 20)...))
	f.Fuzz(func(t *testing.T, codec int16, count int32, records []byte) {
		const most = 1 << 10
		n := int32(0)
		b := batch{attributes: codec & codecBits, count: count, records: records}
		err := b.each(&inflater{}, most, func(r *record) error {
			n++
			if held := len(r.key) + len(r.value) + len(r.headers); held > most && !r.cut {
				t.Errorf("%d bytes are held of a record", held)
			}
			r.eachHeader(func(string, []byte) {})
			return nil
		})
		if err == nil && n != max(count, 0) {
			t.Errorf("%d records of %d, and no error", n, count)
		}
		if errors.Is(err, errStopped) {
			t.Error(err)
		}
	})
}
