package daemon

import (
	"context"

	"dinnerbell/cmd/dinnerbell/internal/tracing"
	"dinnerbell/stream"
)

// openTracer opens the tracer that the configuration asks for; nil without one. close
// sends the last spans, and logs where the collector does not take them.
func openTracer(ctx context.Context, o *Options) (tracer stream.Tracer, closeTracer func(), err error) {
	c := o.Config.Tracing
	if c.Endpoint == "" {
		return nil, func() {}, nil
	}
	t, err := tracing.Open(ctx, tracing.Options{Endpoint: c.Endpoint, SamplePercent: c.SamplePercent, Version: o.Build.Version, Logger: o.Logger})
	if err != nil {
		return nil, nil, err
	}
	return t, func() {
		if err := t.Close(); err != nil {
			o.Logger.Warn("the last spans are lost", "error", err)
		}
	}, nil
}
