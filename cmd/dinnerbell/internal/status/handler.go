package status

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// NewHandler returns the handler of the read-only endpoints. report is called for
// each request and must be cheap and safe to call concurrently.
func NewHandler(build Build, report func() Report, log *slog.Logger, more ...prometheus.Collector) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = fmt.Fprintln(w, "ok") // the client has gone: nothing to do about it
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		r := report()
		code := http.StatusOK
		if !r.Ready {
			code = http.StatusServiceUnavailable
		}
		reasons := r.Reasons
		if reasons == nil {
			reasons = []string{}
		}
		writeJSON(w, code, struct {
			Ready   bool     `json:"ready"`
			Reasons []string `json:"reasons"`
		}{r.Ready, reasons})
	})
	mux.HandleFunc("GET /api/status", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, report())
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(newRegistry(build, report, more...), promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError),
	}))
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "nothing here; see /, /api/status, /healthz, /readyz, /metrics", http.StatusNotFound)
	})
	return mux
}

// writeJSON answers with one line of JSON that no cache keeps.
func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	text, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "encode answer: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(code)
	_, _ = w.Write(append(text, '\n')) // the client has gone: nothing to do about it
}
