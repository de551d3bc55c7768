package topic

import (
	"testing"

	"dinnerbell/stream/topic/fetch"
)

// A progress record is another writer's, or has the lane's key and a sequence number that
// a record of ours can have; ours are read back as they were written.
func FuzzParseProgress(f *testing.F) {
	for _, value := range []string{`{"seq":7}`, `{"seq":-1}`, `{"seq":null}`, `{"seq":1e3}`, `{"seq":9223372036854775808}`, `{"SEQ":1}`, `[]`, ``, `{"seq":1}x`} {
		f.Add(int32(3), []byte("3"), []byte(value))
	}
	f.Add(int32(3), []byte("4"), []byte(`{"seq":7}`))
	f.Fuzz(func(t *testing.T, lane int32, key, value []byte) {
		seq, ok := parseProgress(&fetch.Record{Partition: lane, Key: key, Value: value})
		if !ok {
			return
		}
		if seq < 0 || string(key) != string(ProgressKey(lane)) {
			t.Errorf("lane %d: a record with key %q is progress %d", lane, key, seq)
		}
		written := ProgressRecord("progress", lane, seq)
		if back, ok := parseProgress(&fetch.Record{Partition: lane, Key: written.Key, Value: written.Value}); !ok || back != seq {
			t.Errorf("progress %d is read as %d, %t", seq, back, ok)
		}
	})
}
