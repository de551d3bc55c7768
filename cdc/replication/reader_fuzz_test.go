package replication

import "testing"

// A payload of the replication stream is a message or an error, and its WAL data is a part
// of it.
func FuzzParseMessage(f *testing.F) {
	f.Add([]byte("w" + "\x00\x00\x00\x00\x00\x00\x00\x01" + "\x00\x00\x00\x00\x00\x00\x00\x02" + "\x00\x00\x00\x00\x00\x00\x00\x03" + "B"))
	f.Add([]byte("k" + "\x00\x00\x00\x00\x00\x00\x00\x01" + "\x00\x00\x00\x00\x00\x00\x00\x02" + "\x01"))
	f.Add([]byte("k\x00"))
	f.Add([]byte("w"))
	f.Add([]byte("?"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		msg, err := parseMessage(data)
		if err == nil && len(msg.wal) >= len(data) {
			t.Errorf("%d bytes of WAL data in a message of %d", len(msg.wal), len(data))
		}
	})
}
