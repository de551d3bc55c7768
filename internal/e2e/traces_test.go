package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
)

// A campaign's trace goes on from its message to its notifications, and its spans come to
// the collector. Without a collector everything is delivered all the same.
func TestCampaignsAreTraced(t *testing.T) {
	t.Parallel()
	collector := envtest.StartCollector(t)
	d := newDeployment(t)
	d.addSubscriptions(2, 3000)
	d.setup(1)
	d.env, d.traced = append(os.Environ(), "DINNERBELL_TRACING_ENDPOINT="+collector.URL), true
	d.start()
	d.awaitReady()
	const traceID, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	c := newCampaign("traced", "r1")
	if err := d.campaigns.ProduceSync(t.Context(), &kgo.Record{Topic: d.topicName("campaigns"), Value: c.JSON(),
		Headers: []kgo.RecordHeader{{Key: "traceparent", Value: []byte("00-" + traceID + "-" + parent + "-01")}}}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	d.checkOnce(map[string]string{"traced": "r1"}, patience)
	d.stop() // sends the last spans
	all := collector.Spans("campaign")
	if len(all) != 1 || all[0].TraceID != traceID || all[0].Parent != parent || all[0].Numbers["dinnerbell.notified"] == 0 || all[0].Texts["dinnerbell.outcome"] != "finished" {
		t.Fatalf("campaign: %+v\n%s", all, d.log.tail(4<<10))
	}
	for _, r := range d.kafka.ReadAll(d.topicName("notifications")) {
		if len(r.Headers) != 1 || r.Headers[0].Key != "traceparent" || string(r.Headers[0].Value) != "00-"+traceID+"-"+all[0].SpanID+"-01" {
			t.Fatalf("headers of %s: %v", r.Key, r.Headers)
		}
	}
	for _, name := range []string{"barrier", "decide", "ship"} {
		var notified int64
		spans := collector.Spans(name)
		for _, s := range spans {
			if s.TraceID != traceID || s.Parent != all[0].SpanID || s.Nanoseconds < 0 {
				t.Errorf("%s: %+v", name, s)
			}
			notified += s.Numbers["dinnerbell.notifications"]
		}
		if want := all[0].Numbers["dinnerbell.notified"]; len(spans) == 0 || name != "barrier" && notified != want {
			t.Errorf("%d spans %s of %d notifications, want %d", len(spans), name, notified, want)
		}
	}

	d.env = append(os.Environ(), "DINNERBELL_TRACING_ENDPOINT=http://127.0.0.1:1")
	d.start()
	d.awaitReady()
	d.produce(0, newCampaign("untold", "r0"))
	d.checkOnce(map[string]string{"traced": "r1", "untold": "r0"}, patience)
	d.stop()
	if n := strings.Count(d.log.tail(1<<20), "takes no spans"); n != 1 {
		t.Errorf("%d lines about the collector", n)
	}
}
