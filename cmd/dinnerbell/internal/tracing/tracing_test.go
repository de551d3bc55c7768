package tracing

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream"
)

func TestMain(m *testing.M) { envtest.Main(m) }

const (
	traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	parent  = "00f067aa0ba902b7"
)

// A campaign of many steps has a bounded number of spans, below the span that its message
// names, and the count of all.
func TestStepsAreBounded(t *testing.T) {
	t.Parallel()
	collector := envtest.StartCollector(t)
	tracer, err := Open(t.Context(), Options{Endpoint: collector.URL, SamplePercent: 100, Version: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	tr := tracer.BeginTrace(&stream.TracedCampaign{Campaign: "c", Restaurant: "r", Traceparent: "00-" + traceID + "-" + parent + "-01", Received: now, Waited: time.Millisecond})
	if got := tr.Traceparent(); !strings.HasPrefix(got, "00-"+traceID+"-") || strings.Contains(got, parent) || !strings.HasSuffix(got, "-01") {
		t.Errorf("traceparent %s", got)
	}
	for seq := range int64(10 * maxSteps) {
		tr.AddStep("decide", now, now.Add(time.Second), seq, 2000)
	}
	tr.EndTrace(now.Add(time.Minute), "finished", 1_280_000, 1_280_000)
	if err := tracer.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(collector.Spans("decide")); n != maxSteps {
		t.Errorf("%d spans of steps", n)
	}
	all := collector.Spans("campaign")
	if len(all) != 1 || all[0].TraceID != traceID || all[0].Parent != parent || all[0].Nanoseconds != int64(time.Minute) ||
		all[0].Numbers["dinnerbell.steps_decided"] != 10*maxSteps || all[0].Numbers["dinnerbell.notified"] != 1_280_000 || all[0].Texts["dinnerbell.campaign"] != "c" {
		t.Errorf("campaign %+v", all)
	}
	if wait := collector.Spans("barrier"); len(wait) != 1 || wait[0].Parent != all[0].SpanID || wait[0].Nanoseconds != int64(time.Millisecond) {
		t.Errorf("barrier %+v", wait)
	}
}

// The message's decision counts, and without one the percentage; the header goes on in
// any case.
func TestSampling(t *testing.T) {
	t.Parallel()
	collector := envtest.StartCollector(t)
	tracer, err := Open(t.Context(), Options{Endpoint: collector.URL, SamplePercent: 0, Version: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for header, want := range map[string]string{"00-" + traceID + "-" + parent + "-01": "-01", "00-" + traceID + "-" + parent + "-00": "-00", "": "-00", "nonsense": "-00"} {
		tr := tracer.BeginTrace(&stream.TracedCampaign{Campaign: "c", Traceparent: header, Received: time.Now()})
		if got := tr.Traceparent(); len(got) != 55 || !strings.HasSuffix(got, want) || strings.Contains(header, traceID) != strings.Contains(got, traceID) {
			t.Errorf("%q leads to %q", header, got)
		}
		tr.EndTrace(time.Now(), "finished", 1, 1)
	}
	if err := tracer.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(collector.Spans("campaign")); n != 1 {
		t.Errorf("%d campaigns are traced", n)
	}
}

// A collector that is not there costs one line of the log.
func TestDeadCollector(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	tracer, err := Open(t.Context(), Options{Endpoint: "http://127.0.0.1:1", SamplePercent: 100, Version: "test", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		for range 5000 {
			tracer.BeginTrace(&stream.TracedCampaign{Campaign: "c", Received: time.Now()}).EndTrace(time.Now(), "finished", 1, 1)
		}
		if err := tracer.provider.ForceFlush(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := tracer.Close(); err != nil {
		t.Error(err)
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "takes no spans") || !strings.Contains(got, "tracing.endpoint") {
		t.Errorf("log: %s", got)
	}
}
