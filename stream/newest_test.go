package stream

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
)

// produceAt produces with a timestamp of its own: what orders partitions.
func (w *world) produceAt(partition int32, at time.Time, value []byte) {
	w.Helper()
	client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := client.ProduceSync(w.Context(), &kgo.Record{Topic: w.cfg.Kafka.Campaigns, Partition: partition, Value: value, Timestamp: at}).FirstErr(); err != nil {
		w.Fatal(err)
	}
}

// read waits until a lane has read up to an offset.
func (w *world) read(partition int, offset int64) {
	w.Helper()
	envtest.Until(w, patience, func() error {
		if n := w.db.Int(fmt.Sprintf(`SELECT coalesce(max(next_offset), 0) FROM dinnerbell.lane WHERE lane = %d`, partition)); n < offset {
			return fmt.Errorf("lane %d at %d", partition, n)
		}
		return nil
	})
}

// end checks which message of campaign c stands.
func (w *world) end(want int64) {
	w.Helper()
	if got := w.db.Int(`SELECT adv_campaign_datetime_end FROM dinnerbell.campaign WHERE adv_campaign_id = 'c'`); got != want {
		w.Errorf("the campaign's end is %d; the newest message says %d", got, want)
	}
}

// A on lane 0, cancelled on lane 1, A again on lane 0: the newest message is A.
func TestBackToEarlierContentOverLanes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2, map[string][]string{"r1": clients("0000", 5)})
	w.start()
	a := w.campaign("c", "r1")
	b := a
	b.End = a.Start + 5
	now := time.Now()
	w.produceAt(0, now, a.json())
	w.read(0, 1)
	w.produceAt(1, now.Add(10*time.Millisecond), b.json())
	w.read(1, 1)
	w.produceAt(0, now.Add(20*time.Millisecond), a.json())
	w.read(0, 2)
	w.end(a.End)
}

// A, A again; then the cancel that was produced between the two, from a lane that was behind.
func TestRepeatMovesTheTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2, map[string][]string{"r1": clients("0000", 5)})
	w.start()
	a := w.campaign("c", "r1")
	b := a
	b.End = a.Start + 5
	now := time.Now()
	w.produceAt(0, now, a.json())
	w.produceAt(0, now.Add(20*time.Millisecond), a.json())
	w.read(0, 2)
	w.produceAt(1, now.Add(10*time.Millisecond), b.json())
	w.read(1, 1)
	w.end(a.End)
}
