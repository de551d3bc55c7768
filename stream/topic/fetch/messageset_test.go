package fetch

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/testenv/envtest/rawbatch"
)

// logOf makes logs of message sets, as brokers have them that were upgraded.
type logOf struct {
	testing.TB
	bytes []byte
	want  []*Record // without their sizes
	next  int64
}

func (l *logOf) messages(format byte, n int, gap int64) (out []rawbatch.Message) {
	for i := range n {
		m := rawbatch.Message{Offset: l.next, Time: 1_500_000_000_000 + l.next, Key: fmt.Append(nil, "key ", l.next), Value: bytes.Repeat(fmt.Append(nil, "value ", l.next, " "), 50)}
		switch i % 3 {
		case 1:
			m.Key = nil
		case 2:
			m.Key, m.Value = []byte{}, nil
		}
		out = append(out, m)
		r := &Record{Offset: m.Offset, Time: m.Time, Key: m.Key, Value: m.Value}
		if format == 0 {
			r.Time = noTime
		}
		l.want = append(l.want, r)
		l.next += 1 + gap
	}
	return out
}

func (l *logOf) plain(format byte, n int) {
	l.bytes = append(l.bytes, rawbatch.MessageSet(format, l.messages(format, n, 0)...)...)
}

func (l *logOf) wrapper(format byte, codec rawbatch.Codec, n int, gap int64) {
	l.bytes = append(l.bytes, rawbatch.Wrapper(l, format, codec, 0, l.messages(format, n, gap)...)...)
}

// read walks the log as one response, from an offset on.
func (l *logOf) read(from int64) (out []*Record) {
	l.Helper()
	part := &kmsg.FetchResponseTopicPartition{RecordBatches: l.bytes, LastStableOffset: l.next, HighWatermark: l.next}
	p := &PartitionReader{}
	for r, err := range p.readResponse(l.Context(), part, from) {
		if err != nil {
			l.Fatal(err)
		}
		if !r.Empty {
			out = append(out, r)
		}
	}
	return out
}

func (l *logOf) check(got, want []*Record) {
	l.Helper()
	if len(got) != len(want) {
		l.Fatalf("%d records, want %d", len(got), len(want))
	}
	for i, r := range got {
		w := want[i]
		if r.Unreadable != "" || r.Offset != w.Offset || r.Next != w.Offset+1 || r.Time != w.Time || !bytes.Equal(r.Key, w.Key) || !bytes.Equal(r.Value, w.Value) || (r.Key == nil) != (w.Key == nil) || (r.Value == nil) != (w.Value == nil) {
			l.Errorf("record %d: %+v, want %+v", i, r, w)
		}
	}
}

// Messages of the formats before 0.11 are read like those of today: with any codec, with
// relative offsets, with the gaps of a compacted log, and beside record batches.
func TestMessageSetsAreRead(t *testing.T) {
	t.Parallel()
	l := &logOf{TB: t, next: 7}
	for _, format := range []byte{0, 1} {
		l.plain(format, 5)
		for _, codec := range []rawbatch.Codec{rawbatch.Gzip, rawbatch.Snappy, rawbatch.LZ4} {
			l.wrapper(format, codec, 7, 0)
			l.wrapper(format, codec, 4, 2)
		}
		l.next += 3 // a segment that was compacted
		l.plain(format, 1)
	}
	batch := kmsg.RecordBatch{FirstOffset: l.next, Magic: 2, ProducerID: -1, NumRecords: 1, Records: rawbatch.Record(0, "of today")}
	l.bytes = append(l.bytes, rawbatch.Seal(batch)...)
	l.want = append(l.want, &Record{Offset: l.next, Value: []byte("of today")})
	l.next++
	for from := range l.next {
		i := slices.IndexFunc(l.want, func(r *Record) bool { return r.Offset >= from })
		l.check(l.read(from), l.want[i:])
	}
	l.bytes = l.bytes[:len(l.bytes)-5] // the last batch of a response may be cut
	l.check(l.read(0), l.want[:len(l.want)-1])
}

// The time of a wrapper that the broker has stamped counts for all messages within.
func TestWrapperWithTheBrokersTime(t *testing.T) {
	t.Parallel()
	l := &logOf{TB: t}
	messages := l.messages(1, 3, 0)
	l.bytes = rawbatch.Wrapper(t, 1, rawbatch.Gzip, rawbatch.LogAppendTime, messages...)
	for _, r := range l.want {
		r.Time = messages[2].Time
	}
	l.check(l.read(0), l.want)
}

// The reader reads message sets as the client library does. The library refuses the
// headers of old LZ4 frames.
func TestMessageSetsAreReadAsAConsumerReadsThem(t *testing.T) {
	t.Parallel()
	l := &logOf{TB: t}
	l.plain(0, 3)
	l.wrapper(0, rawbatch.Snappy, 5, 0)
	l.plain(1, 3)
	l.wrapper(1, rawbatch.Gzip, 5, 0)
	l.wrapper(1, rawbatch.LZ4, 5, 3)
	part := &kmsg.FetchResponseTopicPartition{RecordBatches: l.bytes, LastStableOffset: l.next, HighWatermark: l.next}
	fetched, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{KeepControlRecords: true, Offset: 2}, part, kgo.DefaultDecompressor(), nil)
	var want []*Record
	for _, r := range fetched.Records {
		at := r.Timestamp.UnixMilli()
		if r.Attrs.TimestampType() < 0 {
			at = noTime
		}
		want = append(want, &Record{Offset: r.Offset, Time: at, Key: r.Key, Value: r.Value})
	}
	if fetched.Err != nil || len(want) != len(l.want)-2 {
		t.Fatalf("the library reads %d records: %v", len(want), fetched.Err)
	}
	l.check(l.read(2), want)
}

// A damaged or senseless message stands alone: those before and behind it are read.
func TestUnreadableMessagesStandAlone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		message func(*logOf) []byte
		reason  string
	}{
		"no gzip": {func(*logOf) []byte {
			return rawbatch.WrapperOf(1, rawbatch.Gzip, rawbatch.Message{Offset: 2, Value: []byte("no gzip")})
		}, "inflate the batch"},
		"an unknown codec": {func(*logOf) []byte {
			return rawbatch.WrapperOf(1, 7, rawbatch.Message{Offset: 2, Value: []byte("x")})
		}, "unknown codec 7"},
		"a wrapper in a wrapper": {func(l *logOf) []byte {
			inner := rawbatch.Wrapper(l, 0, rawbatch.Gzip, 0, rawbatch.Message{Offset: 2, Value: []byte("x")})
			return rawbatch.WrapperOf(0, rawbatch.Gzip, rawbatch.Message{Offset: 2, Value: rawbatch.Compress(l, rawbatch.Gzip, inner)})
		}, "holds another one"},
		"half a message": {func(l *logOf) []byte {
			set := rawbatch.MessageSet(0, rawbatch.Message{Offset: 2, Value: []byte("xxxx")})
			return rawbatch.WrapperOf(0, rawbatch.Gzip, rawbatch.Message{Offset: 2, Value: rawbatch.Compress(l, rawbatch.Gzip, set[:len(set)-2])})
		}, "ends within a message"},
		"offsets before the log": {func(l *logOf) []byte {
			set := rawbatch.MessageSet(1, rawbatch.Message{Offset: 0}, rawbatch.Message{Offset: 9})
			return rawbatch.WrapperOf(1, rawbatch.Gzip, rawbatch.Message{Offset: 2, Value: rawbatch.Compress(l, rawbatch.Gzip, set)})
		}, "not in its place"},
		"a batch of today": {func(l *logOf) []byte {
			set := rawbatch.MessageSet(2, rawbatch.Message{Offset: 2, Value: []byte("xxxx")})
			return rawbatch.WrapperOf(1, rawbatch.Gzip, rawbatch.Message{Offset: 2, Value: rawbatch.Compress(l, rawbatch.Gzip, set)})
		}, "a message of format 2"},
		"a key of 2 GB": {func(l *logOf) []byte {
			set := rawbatch.MessageSet(0, rawbatch.Message{Offset: 2, Value: []byte("xxxx")})
			copy(set[18:], "\x7f\xff\xff\xff")
			return rawbatch.WrapperOf(0, rawbatch.Gzip, rawbatch.Message{Offset: 2, Value: rawbatch.Compress(l, rawbatch.Gzip, set)})
		}, errMalformedRecord.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &logOf{TB: t}
			l.wrapper(1, rawbatch.Gzip, 2, 0)
			l.bytes = append(l.bytes, c.message(l)...)
			l.next++
			l.wrapper(1, rawbatch.Gzip, 2, 0)
			got := l.read(0)
			if len(got) != 5 || !strings.Contains(got[2].Unreadable, c.reason) || got[2].Offset != 2 || got[2].Next != 3 {
				t.Fatalf("%d records, %+v, want a reason with %q", len(got), got[min(2, len(got)-1)], c.reason)
			}
			l.check(slices.Delete(got, 2, 3), l.want)
		})
	}
}

// The reader never panics, holds more than its bound, or loops, whatever a response holds.
func FuzzReadResponse(f *testing.F) {
	l := &logOf{TB: f}
	l.plain(0, 2)
	l.wrapper(0, rawbatch.LZ4, 2, 0)
	l.wrapper(1, rawbatch.Snappy, 3, 1)
	l.plain(1, 1)
	f.Add(l.bytes)
	f.Add(rawbatch.WrapperOf(1, rawbatch.Zstd, rawbatch.Message{Value: rawbatch.Bomb(f, rawbatch.Zstd, 1<<20)}))
	f.Add(rawbatch.Seal(kmsg.RecordBatch{Magic: 2, NumRecords: 2, Attributes: int16(rawbatch.Gzip), Records: rawbatch.Compress(f, rawbatch.Gzip, append(rawbatch.Record(0, "x"), rawbatch.Record(1, "y")...))}))
	f.Fuzz(func(t *testing.T, response []byte) {
		const most = 1 << 10
		in := &batchInflater{}
		for rest := response; ; {
			b, behind, ok := splitBatch(rest)
			if !ok {
				return
			}
			if len(behind) >= len(rest) {
				t.Fatal("no progress")
			}
			rest = behind
			_ = b.verify()
			n := 0
			_ = b.readRecords(in, most, func(r *Record) error { // the checksum does not keep the fuzzer out
				if held := len(r.Key) + len(r.Value) + len(r.headers); held > most && !r.Truncated || held > 2*CutRecordBytes {
					t.Errorf("%d bytes are held of a record", held)
				}
				r.EachHeader(func(string, []byte) {})
				if n++; n > 10_000 {
					return errWalkStopped
				}
				return nil
			})
		}
	})
}
