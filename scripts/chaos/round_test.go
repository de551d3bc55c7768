package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/scripts/chaos/oracle"
	"dinnerbell/scripts/chaos/random"
)

// The oracle still counts the records that the retention fault has deleted.
func TestDeletedRecordsCount(t *testing.T) {
	t.Parallel()
	rec := func(offset int64) *kgo.Record { return &kgo.Record{Partition: 1, Offset: offset} }
	r := &round{deleted: map[oracle.RecordPosition]*kgo.Record{{Partition: 1, Offset: 0}: rec(0), {Partition: 1, Offset: 1}: rec(1)}}
	if got := r.withDeleted([]*kgo.Record{rec(1), rec(2)}); len(got) != 3 {
		t.Errorf("%d records, want 3: one was read before and after", len(got))
	}
}

// The schedule follows from the seed.
func TestScheduleRepeats(t *testing.T) {
	t.Parallel()
	o := &options{broker: "kafka", daemons: 2, seconds: 8, faults: 30}
	draw := func(seed uint64) string {
		out := ""
		for _, f := range drawSchedule(random.NewStream(seed, 3, random.FaultStream), o, 8*time.Second) {
			out += fmt.Sprintf("%+v\n", *f)
		}
		return out
	}
	if a, b := draw(1), draw(1); a != b {
		t.Errorf("one seed, two schedules:\n%s\n%s", a, b)
	}
	if draw(1) == draw(2) {
		t.Error("two seeds, one schedule")
	}
}
