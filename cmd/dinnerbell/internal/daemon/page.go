package daemon

import (
	"context"
	"net/http"

	"dinnerbell/cmd/dinnerbell/internal/livepage"
	"dinnerbell/stream"
	"dinnerbell/stream/sink"
)

// newLivePage makes the page at `/`. It asks the engine of the moment each time.
func (s *supervisor) newLivePage() (*livepage.Page, error) {
	return livepage.New(livepage.Daemon{
		Status:   s.statusReport,
		FanOuts:  func() []stream.FanOut { return s.currentEngine().Service.FanOuts() },
		Counters: func() stream.Counters { return s.currentEngine().Service.Counters() },
		Open: func(ctx context.Context, limit int) ([]sink.OpenCampaign, error) {
			return s.currentEngine().Service.OpenCampaigns(ctx, limit)
		},
	}, s.Logger)
}

// withPage serves the page beside the other read-only endpoints.
func withPage(page *livepage.Page, others http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", page)
	mux.Handle("GET /live/", page)
	mux.Handle("/", others)
	return mux
}
