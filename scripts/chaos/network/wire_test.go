package network

import (
	"bufio"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// An armed trap swallows exactly the answer to COMMIT; an unarmed one swallows
// nothing.
func TestLoseCommit(t *testing.T) {
	t.Parallel()
	frame := func(kind byte, body string) string {
		return string(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4))) + body
	}
	before := frame('Z', "T") + frame('C', "INSERT 0 1\x00") + frame('D', "COMMIT\x00")
	commit := frame('C', "COMMIT\x00")
	for _, armed := range []int64{0, 1} {
		var out strings.Builder
		tr := &answerTrap{}
		tr.Armed.Store(armed)
		w := bufio.NewWriter(&out)
		err := loseCommit(tr)(bufio.NewReader(strings.NewReader(before+commit+before)), w)
		_ = w.Flush()
		want := before + commit + before
		if armed == 1 {
			want = before
		}
		if out.String() != want || errors.Is(err, errCut) != (armed == 1) || tr.Sprung.Load() != armed {
			t.Errorf("armed %d: passed %q, %v", armed, out.String(), err)
		}
	}
}

// The proxy's address replaces the broker's in every version.
func TestReaddress(t *testing.T) {
	t.Parallel()
	for version := range int16(13) {
		resp := kmsg.NewPtrMetadataResponse()
		resp.SetVersion(version)
		b := kmsg.NewMetadataResponseBroker()
		b.Host, b.Port = "broker", 9092
		resp.Brokers = append(resp.Brokers, b)
		frame := []byte{0, 0, 0, 0, 0, 0, 0, 7}
		if resp.IsFlexible() {
			frame = append(frame, 0)
		}
		frame = resp.AppendTo(frame)
		binary.BigEndian.PutUint32(frame, uint32(len(frame)-4))
		out := newKafkaWire(1234, &answerTrap{}).replaceAddresses(frame, apiRequest{keyMetadata, version})
		if int(binary.BigEndian.Uint32(out)) != len(out)-4 {
			t.Fatalf("version %d: the frame's size is wrong", version)
		}
		body := out[8:]
		if resp.IsFlexible() {
			body = body[1:]
		}
		got := kmsg.NewPtrMetadataResponse()
		got.SetVersion(version)
		if err := got.ReadFrom(body); err != nil || got.Brokers[0].Port != 1234 || got.Brokers[0].Host != "127.0.0.1" {
			t.Errorf("version %d: %+v, %v", version, got, err)
		}
	}
}
