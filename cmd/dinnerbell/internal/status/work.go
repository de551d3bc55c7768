package status

import (
	"time"

	"dinnerbell/cdc"

	"github.com/prometheus/client_golang/prometheus"
)

// Work is a rebuild or a verification under way.
type Work struct {
	Kind  string `json:"kind"` // rebuild, verify
	Stage string `json:"stage"`
	// Rows of the table that were read so far, in this reading of it; Total is
	// Postgres' estimate.
	Rows    int64   `json:"rows"`
	Total   int64   `json:"total"`
	Seconds float64 `json:"seconds"` // since it began
}

func newWorkReport(w *cdc.WorkStatus) *Work {
	if w == nil {
		return nil
	}
	return &Work{Kind: w.Kind, Stage: w.Stage, Rows: w.Copy.Rows, Total: w.Copy.Total, Seconds: roundToTenth(time.Since(w.Since).Seconds())}
}

var (
	descWorkRows  = newDesc("source_work_rows", "Rows of the table that a rebuild or a verification under way has read.", "kind")
	descWorkTotal = newDesc("source_work_rows_expected", "Rows of the table that the rebuild or verification will read in all, as Postgres estimates.", "kind")
)

// collectWork turns w into metrics; nil makes no metrics.
func collectWork(w *Work, gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	if w == nil {
		return
	}
	gauge(descWorkRows, float64(w.Rows), w.Kind)
	gauge(descWorkTotal, float64(w.Total), w.Kind)
}
