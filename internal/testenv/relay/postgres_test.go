package relay

import (
	"bufio"
	"encoding/binary"
	"strings"
	"testing"
)

// Only a startup packet with the parameter replication asks for replication.
func TestReadStartup(t *testing.T) {
	t.Parallel()
	packet := func(body string) string {
		return string(binary.BigEndian.AppendUint32(nil, uint32(len(body)+8))) + "\x00\x03\x00\x00" + body
	}
	for body, want := range map[string]bool{
		"user\x00replication\x00\x00":                  false,
		"user\x00a\x00replication\x00database\x00\x00": true,
		"replication\x00false\x00\x00":                 false,
	} {
		p, replication, err := ReadStartup(bufio.NewReader(strings.NewReader(packet(body) + "rest")))
		if err != nil || replication != want || string(p) != packet(body) {
			t.Errorf("%q: %q, %v, %v", body, p, replication, err)
		}
	}
}
