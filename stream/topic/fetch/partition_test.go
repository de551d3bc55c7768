package fetch

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
)

// Aborted records are not read, however full a response is.
func TestAbortedRecordsAreNotRead(t *testing.T) {
	t.Parallel()
	cluster := envtest.Kafka(t)
	topic := cluster.Topic("full", 1, nil)
	client := cluster.Client(kgo.TransactionalID(envtest.Name("full")), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()))
	filler := make([]byte, 500_000)
	if _, err := rand.Read(filler); err != nil {
		t.Fatal(err)
	}
	aborted, committed := append([]byte("aborted"), filler...), append([]byte("committed"), filler...)
	const rounds = 3 * fetchBytes / (2 * 500_000)
	for range rounds {
		for _, r := range []struct {
			value []byte
			end   kgo.TransactionEndTry
		}{{aborted, kgo.TryAbort}, {committed, kgo.TryCommit}} {
			if err := client.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: r.value}).FirstErr(); err != nil {
				t.Fatal(err)
			}
			if err := client.EndTransaction(t.Context(), r.end); err != nil {
				t.Fatal(err)
			}
		}
	}
	adm := kadm.NewClient(client)
	end, err := ListOffset(t.Context(), topic, 0, adm.ListEndOffsets)
	if err != nil {
		t.Fatal(err)
	}
	details, err := adm.ListTopics(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	p := PartitionReader{Client: client, Topic: topic, TopicID: details[topic].ID}
	got := 0
	err = p.ReadWhole(t.Context(), 0, end.Offset, func(r *Record) error {
		if got++; !bytes.HasPrefix(r.Value, []byte("committed")) {
			t.Errorf("the record at offset %d was aborted", r.Offset)
		}
		return nil
	})
	if err != nil || got != rounds {
		t.Errorf("%d records, want %d (%v)", got, rounds, err)
	}
}

// The reader reads a batch as a consumer does, whatever its codec.
func TestBatchesAreReadAsAConsumerReadsThem(t *testing.T) {
	t.Parallel()
	cluster := envtest.Kafka(t)
	topic := cluster.Topic("codecs", 1, nil)
	for name, codec := range map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	} {
		client := cluster.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(codec), kgo.ProducerLinger(100*time.Millisecond), kgo.ProducerBatchMaxBytes(1_000_000))
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
	p := PartitionReader{Client: cluster.Client(), Topic: topic, TopicID: details[topic].ID}
	for _, from := range []int64{0, 7, 120, int64(len(want)) - 1} { // in the middle of batches, too
		i := from
		err := p.ReadWhole(t.Context(), from, int64(len(want)), func(r *Record) error {
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

func sameRecord(got *Record, want *kgo.Record) error {
	var headers []kgo.RecordHeader
	whole := got.EachHeader(func(key string, value []byte) { headers = append(headers, kgo.RecordHeader{Key: key, Value: value}) })
	same := whole && slices.EqualFunc(headers, want.Headers, func(a, b kgo.RecordHeader) bool {
		return a.Key == b.Key && bytes.Equal(a.Value, b.Value) && (a.Value == nil) == (b.Value == nil)
	})
	switch {
	case got.Offset != want.Offset, got.Time != want.Timestamp.UnixMilli():
		return fmt.Errorf("offset %d, time %d; want %d, %d", got.Offset, got.Time, want.Offset, want.Timestamp.UnixMilli())
	case !bytes.Equal(got.Key, want.Key), !bytes.Equal(got.Value, want.Value), (got.Key == nil) != (want.Key == nil), (got.Value == nil) != (want.Value == nil):
		return fmt.Errorf("key %q, value %.20q; want %q, %.20q", got.Key, got.Value, want.Key, want.Value)
	case !same:
		return fmt.Errorf("headers %v, want %v", headers, want.Headers)
	}
	return nil
}
