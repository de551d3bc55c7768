// Package tracing sends the traces of campaigns to a collector, over OTLP. The collector
// is never waited for: spans wait in a bounded queue, and are dropped where it is full.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"dinnerbell/stream"
)

const (
	// maxSteps bounds the spans of a campaign's steps: one of a million clients has
	// hundreds of steps. The campaign's span counts all of them.
	maxSteps = 64
	// closePatience bounds the wait for the collector when the daemon ends.
	closePatience = 3 * time.Second
)

// Options of a tracer.
type Options struct {
	Endpoint      string // URL of the collector, such as http://localhost:4318
	SamplePercent int    // of the campaigns whose message brings no decision
	Version       string // of the daemon
	Logger        *slog.Logger
}

// Tracer implements stream.Tracer.
type Tracer struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// Open makes a tracer. It connects to nothing. The variables OTEL_EXPORTER_OTLP_HEADERS,
// _TIMEOUT, _CERTIFICATE and the like, and OTEL_RESOURCE_ATTRIBUTES, are the SDK's.
func Open(ctx context.Context, o Options) (*Tracer, error) {
	redirectSDK(o.Logger)
	at, err := url.Parse(o.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("read tracing.endpoint: %w", err)
	}
	if at.Path == "" || at.Path == "/" {
		at.Path = "/v1/traces" // https://opentelemetry.io/docs/specs/otlp/#otlphttp-request
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(at.String()), otlptracehttp.WithRetry(otlptracehttp.RetryConfig{}))
	if err != nil {
		return nil, fmt.Errorf("open tracing.endpoint: %w", err)
	}
	about, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", "dinnerbell"), attribute.String("service.version", o.Version)),
		resource.WithHost(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("read OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(&loggingExporter{SpanExporter: exporter, log: o.Logger, endpoint: o.Endpoint}),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(float64(o.SamplePercent)/100))),
		sdktrace.WithResource(about),
	)
	return &Tracer{provider: provider, tracer: provider.Tracer("dinnerbell")}, nil
}

// Close sends the spans that wait, for a few seconds at most.
func (t *Tracer) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("send the last spans: %w", err)
	}
	return nil
}

// BeginTrace implements stream.Tracer: a span for the campaign, from its receipt on,
// below the span that the message names.
func (t *Tracer) BeginTrace(c *stream.TracedCampaign) stream.Trace {
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{stream.TraceparentHeader: c.Traceparent})
	ctx, span := t.tracer.Start(ctx, "campaign", trace.WithTimestamp(c.Received), trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
		attribute.String("messaging.system", "kafka"), attribute.Int64("messaging.kafka.offset", c.Offset), attribute.Int("messaging.destination.partition.id", int(c.Lane)),
		attribute.String("dinnerbell.campaign", c.Campaign), attribute.String("dinnerbell.restaurant", c.Restaurant)))
	if c.Waited > 0 {
		_, wait := t.tracer.Start(ctx, "barrier", trace.WithTimestamp(c.Received))
		wait.End(trace.WithTimestamp(c.Received.Add(c.Waited)))
	}
	return &campaignSpan{tracer: t.tracer, ctx: ctx, span: span}
}

// campaignSpan implements stream.Trace. Its caller locks.
type campaignSpan struct {
	tracer trace.Tracer
	ctx    context.Context //nolint:containedctx // it is how OpenTelemetry names a parent
	span   trace.Span

	steps   map[string]int // by name, those without a span included
	clients map[string]int64
}

// Traceparent implements stream.Trace.
func (s *campaignSpan) Traceparent() string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(s.ctx, carrier)
	return carrier[stream.TraceparentHeader]
}

// AddStep implements stream.Trace.
func (s *campaignSpan) AddStep(name string, from, to time.Time, seq, clients int64) {
	if !s.span.IsRecording() {
		return
	}
	if s.steps == nil {
		s.steps, s.clients = map[string]int{}, map[string]int64{}
	}
	s.clients[name] += clients
	if s.steps[name]++; s.steps[name] > maxSteps {
		return
	}
	_, step := s.tracer.Start(s.ctx, name, trace.WithTimestamp(from), trace.WithAttributes(
		attribute.Int64("dinnerbell.seq", seq), attribute.Int64("dinnerbell.notifications", clients)))
	step.End(trace.WithTimestamp(to))
}

// EndTrace implements stream.Trace.
func (s *campaignSpan) EndTrace(at time.Time, outcome string, audience, notified int64) {
	s.span.SetAttributes(attribute.String("dinnerbell.outcome", outcome), attribute.Int64("dinnerbell.notified", max(notified, s.clients["decide"])),
		attribute.Int("dinnerbell.steps_decided", s.steps["decide"]), attribute.Int("dinnerbell.steps_shipped", s.steps["ship"]))
	if audience >= 0 {
		s.span.SetAttributes(attribute.Int64("dinnerbell.audience", audience))
	}
	s.span.End(trace.WithTimestamp(at))
}

// loggingExporter logs when the collector takes no more spans, and when it takes them
// again: one line each.
type loggingExporter struct {
	sdktrace.SpanExporter
	log      *slog.Logger
	endpoint string

	mu      sync.Mutex // guards what follows
	lost    bool
	dropped int
}

// ExportSpans implements sdktrace.SpanExporter. Its errors end here.
func (e *loggingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case err != nil && !e.lost:
		e.log.Warn("the collector of traces takes no spans; they are dropped until it does", "endpoint", e.endpoint, "error", err, "to_mend", "start the collector, or correct tracing.endpoint")
	case err == nil && e.lost:
		e.log.Info("the collector of traces takes spans again", "dropped", e.dropped)
		e.dropped = 0
	}
	if e.lost = err != nil; e.lost {
		e.dropped += len(spans)
	}
	return nil
}
