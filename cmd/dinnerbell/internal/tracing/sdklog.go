package tracing

import (
	"context"
	"log/slog"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
)

// redirectSDK has OpenTelemetry's SDK speak to the daemon's log, in place of standard error.
func redirectSDK(log *slog.Logger) {
	otel.SetLogger(logr.FromSlogHandler(&wordsOnly{log.Handler()}))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("OpenTelemetry failed", "error", err) }))
}

// wordsOnly passes the messages of the SDK on without values and errors: where a variable
// cannot be read they repeat it, and OTEL_EXPORTER_OTLP_HEADERS holds credentials.
type wordsOnly struct{ next slog.Handler }

// Enabled implements slog.Handler.
func (h *wordsOnly) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h *wordsOnly) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, min(r.Level, slog.LevelWarn), "OpenTelemetry: "+r.Message, r.PC) // traces are no condition of the work
	if r.Level >= slog.LevelWarn {
		clean.AddAttrs(slog.String("to_mend", "look at the variables OTEL_…; the value is not shown, since it may be a secret"))
	}
	return h.next.Handle(ctx, clean)
}

// WithAttrs implements slog.Handler; the SDK's attributes are left out.
func (h *wordsOnly) WithAttrs([]slog.Attr) slog.Handler { return h }

// WithGroup implements slog.Handler.
func (h *wordsOnly) WithGroup(string) slog.Handler { return h }
