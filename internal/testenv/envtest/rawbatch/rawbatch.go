// Package rawbatch writes record batches that no producer of today writes: bombs, wrong
// counts, damaged bytes, and the message sets of Kafka before 0.11. It shares no code with the reader under test.
package rawbatch

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Codec is a compression codec as the attributes of a batch name it.
type Codec int16

// The codecs of Kafka.
const (
	Plain  Codec = 0
	Gzip   Codec = 1
	Snappy Codec = 2
	LZ4    Codec = 3
	Zstd   Codec = 4
)

// compressWith returns the output of write, compressed.
func compressWith(t testing.TB, codec Codec, write func(io.Writer) error) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch codec {
	case Gzip:
		w = gzip.NewWriter(&out)
	case LZ4:
		w = lz4.NewWriter(&out)
	case Snappy:
		w = xerial{&out}
	default:
		w, err = zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := write(w); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Bomb returns the compressed records of a batch, one for each size: a record
// without a key whose value is that many zeros. The codec is Gzip, LZ4 or Zstd.
func Bomb(t testing.TB, codec Codec, sizes ...int) []byte {
	t.Helper()
	zeros := make([]byte, 1<<20)
	return compressWith(t, codec, func(w io.Writer) error {
		for i, size := range sizes {
			if _, err := w.Write(recordHead(int64(i), size)); err != nil {
				return err
			}
			for left := size; left > 0; left -= len(zeros) {
				if _, err := w.Write(zeros[:min(left, len(zeros))]); err != nil {
					return err
				}
			}
			if _, err := w.Write([]byte{0}); err != nil { // no headers
				return err
			}
		}
		return nil
	})
}

// HeaderBomb returns the Zstd-compressed records of a batch, each with a header of
// size bytes.
func HeaderBomb(t testing.TB, records, size int) []byte {
	t.Helper()
	return compressWith(t, Zstd, func(w io.Writer) error {
		for i := range records {
			body := append(recordBody(int64(i), 0), 2, 2, 'h') // no value, one header, its key
			body = binary.AppendVarint(body, int64(size))
			body = append(body, make([]byte, size)...)
			if _, err := w.Write(append(binary.AppendVarint(nil, int64(len(body))), body...)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Record returns an uncompressed record without key and headers, at an offset
// relative to its batch.
func Record(delta int64, value string) []byte {
	return append(append(recordHead(delta, len(value)), value...), 0)
}

// recordHead returns a record from its length up to its value.
func recordHead(delta int64, value int) []byte {
	body := recordBody(delta, value)
	return append(binary.AppendVarint(nil, int64(len(body)+value+1)), body...)
}

// recordBody returns a record from behind its length up to its value.
func recordBody(delta int64, value int) []byte {
	body := []byte{0}
	body = binary.AppendVarint(body, 0)
	body = binary.AppendVarint(body, delta)
	body = binary.AppendVarint(body, -1)
	return binary.AppendVarint(body, int64(value))
}

// Offsets in a batch.
const (
	lengthEnd    = 12 // the length counts the bytes behind it
	checkedStart = 21 // the checksum covers the bytes from here on
)

// Seal returns the bytes of a batch with its length and its checksum.
func Seal(b kmsg.RecordBatch) []byte {
	b.Length = int32(len(b.AppendTo(nil)) - lengthEnd)
	b.CRC = int32(crc32.Checksum(b.AppendTo(nil)[checkedStart:], crc32.MakeTable(crc32.Castagnoli)))
	return b.AppendTo(nil)
}

// Produce writes one batch of records to partition 0 of a topic. The batch claims
// count records.
func Produce(t testing.TB, client *kgo.Client, topic string, codec Codec, count int32, records []byte) {
	t.Helper()
	now := time.Now().UnixMilli()
	b := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, Attributes: int16(codec), LastOffsetDelta: count - 1, FirstTimestamp: now, MaxTimestamp: now,
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: count, Records: records,
	}
	sealed := Seal(b)
	details, err := kadm.NewClient(client).ListTopics(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 30000
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic, rt.TopicID = topic, details[topic].ID
	rp := kmsg.NewProduceRequestTopicPartition()
	rp.Records = sealed
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	if err := kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode); err != nil {
		t.Fatalf("produce a batch of codec %d: %v", codec, err)
	}
}
