package fetch

import (
	"encoding/binary"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// honestResponse is what a broker answers, in a version of the protocol.
func honestResponse(version int16) *kmsg.FetchResponse {
	resp := kmsg.NewPtrFetchResponse()
	resp.Version = version
	topic, part := kmsg.NewFetchResponseTopic(), kmsg.NewFetchResponseTopicPartition()
	if version < 13 {
		topic.Topic = "campaigns"
	} else {
		topic.TopicID = [16]byte{1, 2, 3}
	}
	part.HighWatermark, part.RecordBatches = 7, []byte("records")
	if version >= 4 {
		part.LastStableOffset = 6
		for i := range int64(300) {
			a := kmsg.NewFetchResponseTopicPartitionAbortedTransaction()
			a.ProducerID, a.FirstOffset = i, i
			part.AbortedTransactions = append(part.AbortedTransactions, a)
		}
	}
	if version >= 12 {
		part.CurrentLeader.LeaderID, part.CurrentLeader.LeaderEpoch = 3, 4
	}
	topic.Partitions = append(topic.Partitions, part)
	resp.Topics = append(resp.Topics, topic)
	return resp
}

// An honest response of any version is decoded; one that is cut is an error.
func TestFetchResponseIsDecoded(t *testing.T) {
	t.Parallel()
	for version := range kmsg.NewPtrFetchRequest().MaxVersion() + 1 {
		want := honestResponse(version)
		sent := want.AppendTo(nil)
		req := kmsg.NewPtrFetchRequest()
		req.Version = version
		got, ok := partitionFetch{req}.ResponseKind().(*partitionResponse)
		if !ok {
			t.Fatal("not a partitionResponse")
		}
		if err := got.ReadFrom(sent); err != nil {
			t.Errorf("version %d: %v", version, err)
		} else if !reflect.DeepEqual(got.AppendTo(nil), sent) || string(got.Topics[0].Partitions[0].RecordBatches) != "records" {
			t.Errorf("version %d: %+v, want %+v", version, got, want)
		}
		for n := range sent {
			if err := got.ReadFrom(sent[:n]); err == nil {
				t.Errorf("version %d: %d of %d bytes are no error", version, n, len(sent))
			}
		}
	}
}

// A response that claims more than one has is refused before anything is allocated for
// it. Not parallel: it counts allocations.
func TestFetchResponseThatClaimsMuchIsRefused(t *testing.T) {
	const size = 16 << 20
	head := make([]byte, 10) // throttle time, error, session
	uvarint := func(n uint64) string { return string(binary.AppendUvarint(nil, n)) }
	one, id, empty := uvarint(2), string(make([]byte, 16)), uvarint(1)
	part := string(make([]byte, 4+2+8+8+8))
	for name, c := range map[string]struct{ body, want string }{
		"topics":     {uvarint(size), "claims 16777215 topics"},
		"partitions": {one + id + uvarint(size), "claims 16777215 partitions"},
		"aborted":    {one + id + one + part + uvarint(size), "claims 16777215 aborted transactions"},
		"tags":       {one + id + one + part + empty + "\x00\x00\x00\x00" + empty + uvarint(1<<32-1), "claims 4294967295 tags"},
		"last tags":  {empty + uvarint(1<<32-1), "claims 4294967295 tags"},
		"large tag":  {empty + uvarint(1) + uvarint(0) + uvarint(size), "a tag of 16777216 bytes"},
	} {
		body := append(append(append([]byte{}, head...), c.body...), make([]byte, size)...)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := (&partitionResponse{kmsg.FetchResponse{Version: 13}}).ReadFrom(body)
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
			t.Errorf("%s: %d MB were allocated", name, got>>20)
		}
	}
}
