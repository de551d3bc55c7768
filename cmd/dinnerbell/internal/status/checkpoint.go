package status

import (
	"time"

	"dinnerbell/cdc"
	"dinnerbell/state/id"
)

// checkpointReport is the newest checkpoint, in the status.
type checkpointReport struct {
	ID         string    `json:"id,omitempty"`
	LSN        id.LSN    `json:"lsn"`
	Made       time.Time `json:"made,omitzero"`
	AgeSeconds float64   `json:"age_seconds"`
	// HeldBackBytes is WAL that is durable here and not acknowledged, because no
	// checkpoint stands for it yet.
	HeldBackBytes int64 `json:"held_back_bytes"`
	// LastError is the error of the last attempt; "" after a success.
	LastError string `json:"last_error,omitempty"`
}

func newCheckpointReport(m cdc.Status) checkpointReport {
	r := checkpointReport{
		ID: m.Checkpoint.ID, LSN: m.Checkpoint.LSN, Made: m.Checkpoint.Made, HeldBackBytes: m.Checkpoint.HeldBack, LastError: oneLine(m.Checkpoint.Error),
	}
	if r.ID != "" {
		r.AgeSeconds = time.Since(r.Made).Seconds()
	}
	return r
}
