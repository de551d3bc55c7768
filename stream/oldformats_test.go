package stream

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/envtest/rawbatch"
	"dinnerbell/stream/campaign"
)

// A broker that was upgraded keeps the messages of Kafka before 0.11 as they are, and
// sends them so. Brokers of today write none, so the test puts a segment in its place.
func TestMessagesFromBeforeAnUpgradeAreRead(t *testing.T) {
	t.Parallel()
	if !envtest.RealKafka() {
		t.Skip("needs Java and Maven: run by make test-kafka")
	}
	dir := filepath.Join(t.TempDir(), "kafka")
	kafka := envtest.StartKafka(t, dir)
	t.Cleanup(func() {
		if err := kafka.Stop(); err != nil {
			t.Error(err)
		}
	})
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 5)})
	w.moveTo(t, kafka.Addr())
	if err := kafka.Stop(); err != nil {
		t.Fatal(err)
	}

	want, offset := map[string][]string{}, int64(0)
	messages := func(prefix string, n int) (out []rawbatch.Message) {
		for i := range n {
			id := fmt.Sprint(prefix, " ", i)
			out = append(out, rawbatch.Message{Offset: offset, Time: time.Now().UnixMilli(), Key: []byte(id), Value: encodeCampaign(w.campaign(id, "r1"))})
			want[id] = w.subs["r1"]
			offset++
		}
		return out
	}
	var segment []byte
	for _, format := range []byte{0, 1} {
		segment = append(segment, rawbatch.MessageSet(format, messages(fmt.Sprint("plain ", format), 3)...)...)
		for _, codec := range []rawbatch.Codec{rawbatch.Gzip, rawbatch.Snappy, rawbatch.LZ4} {
			segment = append(segment, rawbatch.Wrapper(t, format, codec, 0, messages(fmt.Sprint("codec ", codec, " ", format), 4)...)...)
		}
		segment = append(segment, rawbatch.MessageSet(format, rawbatch.Message{Offset: offset, Time: 1_500_000_000_000, Key: []byte("tombstone")})...)
		offset++
	}
	file := filepath.Join(dir, "data", w.cfg.Kafka.Campaigns+"-0", strings.Repeat("0", 20)+".log")
	if at, err := os.Stat(file); err != nil || at.Size() > 0 {
		t.Fatalf("the partition's segment: %+v, %v", at, err)
	}
	if err := os.WriteFile(file, segment, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := kafka.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.produce(0, encodeCampaign(w.campaign("of today", "r1")))
	want["of today"] = w.subs["r1"]
	w.expect(want)
	letters := w.refused(2)
	for at, sent := range map[int64]int64{15: -1, 31: 1_500_000_000_000} { // format 0 has no time
		if d := letters[at]; d == nil || d.Class != campaign.ClassTombstone || d.Time.UnixMilli() != sent || string(d.Key) != "tombstone" {
			t.Errorf("offset %d: %+v", at, d)
		}
	}
}
