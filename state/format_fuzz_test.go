package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"testing"
	"time"

	"dinnerbell/state/id"

	"github.com/cespare/xxhash/v2"
)

// withSum appends the checksum, so that the reader behind it is reached.
func withSum(b []byte) []byte {
	return binary.BigEndian.AppendUint32(bytes.Clone(b), crc32.Checksum(b, castagnoli))
}

// packedID is an id of a seed.
func packedID(f *testing.F, text string) id.ID {
	f.Helper()
	packed, err := id.Pack(text)
	if err != nil {
		f.Fatal(err)
	}
	return packed
}

// A value of the row index is damaged, or is written again as the same bytes.
func FuzzParseRow(f *testing.F) {
	uuid, text := packedID(f, "123e4567-e89b-12d3-a456-426614174000"), packedID(f, "a text")
	for _, row := range []storedRow{{restaurant: uuid, client: text}, {restaurant: text}, {client: uuid}, {}} {
		f.Add(row.appendValue(nil))
	}
	f.Add([]byte{})
	f.Add(append((storedRow{restaurant: uuid, client: text}).appendValue(nil), 0))
	f.Fuzz(func(t *testing.T, value []byte) {
		row, err := parseRow(value)
		if err == nil && !bytes.Equal(row.appendValue(nil), value) {
			t.Errorf("the value %x is written again as %x", value, row.appendValue(nil))
		}
	})
}

// A state record, and a record of the log with it, are damaged or keep all that they say.
func FuzzParseRecord(f *testing.F) {
	record := stateRecord{gen: 1, end: 2, rows: 3, sum: 4, torn: true}
	log := logRecord{floor: 5, since: 6, history: 7}
	f.Add(record.encodeRecord()[:recordLen-4])
	f.Add(log.appendRecord(nil, record)[:logRecordLen+historyLen-4])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, b := range [][]byte{body, withSum(body)} {
			if r, err := parseRecord(b); err == nil {
				if again, err := parseRecord(r.encodeRecord()); err != nil || again != r {
					t.Errorf("%+v is read again as %+v, %v", r, again, err)
				}
			}
			r, ok := parseLogRecord(b, record)
			if !ok {
				continue
			}
			if again, ok := parseLogRecord(r.appendRecord(nil, record), record); !ok || again != r {
				t.Errorf("%+v is read again as %+v, %t", r, again, ok)
			}
		}
	})
}

// Keys of the log and of its segments are damaged, or are written again as the same bytes.
func FuzzParseLogKey(f *testing.F) {
	f.Add(appendLogKey(nil, 7, 3), []byte{})
	segment := logSegment{end: 9, bytes: 1 << 20, at: 5}
	f.Add(segmentKey(segment.end), segment.encodeSegment())
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if lsn, part, err := parseLogKey(key); err == nil && !bytes.Equal(appendLogKey(nil, lsn, part), key) {
			t.Errorf("the key %x is written again as %x", key, appendLogKey(nil, lsn, part))
		}
		if s, err := parseSegment(key, value); err == nil && (!bytes.Equal(s.encodeSegment(), value) || !bytes.Equal(segmentKey(s.end)[1:], key[1:])) {
			t.Errorf("the segment %x, %x is read as %+v", key, value, s)
		}
	})
}

// A blob of the subscription log is damaged, or is read to its end: no more entries than
// its bytes, each with the ids that its kind has.
func FuzzParseBlob(f *testing.F) {
	b := logBuilder{}
	restaurant := packedID(f, "123e4567-e89b-12d3-a456-426614174000")
	b.addEntry(LogAppeared, restaurant, packedID(f, "first"))
	b.addEntry(LogGone, restaurant, packedID(f, "second"))
	b.addTruncate()
	seed := append([]byte{0, txAbsolute, 7, 9, byte(b.entries)}, byte(len(b.rest)))
	f.Add(append(seed, b.rest...))
	f.Add([]byte{0})
	f.Add([]byte{0, txAbsolute, 1, 1, 1, 0xff})
	f.Add([]byte{0, txRelative, 1, 1, 2, 2, byte(LogTruncated), byte(LogAppeared) | headSameRestaurant | headSameClient})
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, err := parseBlob(body); err == nil && len(body) < blobHeadLen+blobSumLen {
			t.Errorf("a blob of %d bytes", len(body))
		}
		blob, err := parseBlob(withSum(body))
		if err != nil {
			return
		}
		entries := 0
		for {
			tx, ok, err := blob.next()
			if err != nil || !ok {
				return
			}
			for {
				var e LogEntry
				if ok, err := tx.next(&e); err != nil || !ok {
					break
				}
				if entries++; entries > len(body) {
					t.Fatalf("more entries than the %d bytes", len(body))
				}
				if e.Kind != LogTruncated && (id.PackedLen([]byte(e.Restaurant)) != len(e.Restaurant) || id.PackedLen([]byte(e.Client)) != len(e.Client)) {
					t.Fatalf("an entry with ids that are none: %x, %x", e.Restaurant, e.Client)
				}
				_ = e.cloneEntry()
			}
		}
	})
}

// A manifest behind its checksum is no manifest, or is written and read again.
func FuzzParseManifest(f *testing.F) {
	m := Manifest{ID: "20260131T080000.000Z", Made: time.Unix(1769846400, 0).UTC(), Cause: CauseTimed, Writer: "v1", Format: 1, EndLSN: 9, Subscriptions: 3, Sum: 7, Files: map[string]int64{"000001.sst": 10}}
	whole, err := m.encodeManifest()
	if err != nil {
		f.Fatal(err)
	}
	_, text, _ := bytes.Cut(bytes.TrimSuffix(whole, []byte("\n")), []byte("\n"))
	f.Add(text)
	for _, text := range []string{"null", "{}", "[]", `{"made":"x"}`, `{"sum":7}`, `{"end_lsn":"0/"}`, `{"files":{"../x":-1}}`, "{"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := parseManifest(text); err == nil {
			return // a checksum of its own
		}
		m, err := parseManifest(fmt.Appendf(nil, "%016x\n%s\n", xxhash.Sum64(text), text))
		if err != nil {
			return
		}
		again, err := m.encodeManifest()
		if err != nil {
			return // a year that JSON cannot write
		}
		if _, err := parseManifest(again); err != nil {
			t.Errorf("%s was read, and cannot be read again: %v", text, err)
		}
		_ = m.Bytes()
	})
}
