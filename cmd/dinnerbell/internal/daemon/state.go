package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/httpserve"
	"dinnerbell/state"
)

// OpenState opens state.dir, which locks it. The errors of package state name the
// next command. distrust is why an existing store must be set aside; nil keeps it.
func OpenState(cfg *config.Config, log *slog.Logger, version string, distrust error) (*state.Store, error) {
	o := StateOptions(cfg, log, version)
	o.Distrust = distrust
	store, err := state.Open(cfg.State.Dir, o)
	if err != nil && strings.Contains(err.Error(), filepath.Clean(cfg.State.Dir)) {
		return nil, fmt.Errorf("open state.dir: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open state.dir %s: %w", cfg.State.Dir, err)
	}
	return store, nil
}

// StateOptions returns the options of every opening of state.dir.
func StateOptions(cfg *config.Config, log *slog.Logger, version string) state.Options {
	return state.Options{
		Logger: log.With("part", "state"), KeepCheckpoints: cfg.State.Checkpoint.Keep, Writer: version,
		ReserveBytes: cfg.State.Reserve.Bytes, ReservePercent: cfg.State.Reserve.Percent,
		Log:       logOptions(cfg),
		OpenFiles: int(min(1000, httpserve.DescriptorLimit()/2)),
		Fatal:     func(message string) { endAtOnce(cfg, log, message) },
	}
}

// logOptions returns the bounds of the log of subscription changes.
func logOptions(cfg *config.Config) state.LogOptions {
	h := cfg.State.History
	o := state.LogOptions{Bytes: int64(h.Size), Age: time.Duration(h.Age)}
	if cfg.Join.LateSubscribers { // the lanes read it
		o.Bytes, o.KeepBytes = max(o.Bytes, lateLogBytes), lateLogBytes
	}
	return o
}

// lateLogBytes is how much of the log stays for late subscribers, whatever state.history
// says: what a lane may be behind without joining its campaigns again.
const lateLogBytes = 64 << 20

// endAtOnce ends the process when the store cannot go on: Pebble cannot recover
// from a failed write, and holds its locks. The process crashes with a reason in
// the log; the next start recovers.
func endAtOnce(cfg *config.Config, log *slog.Logger, message string) {
	log.Error("the local state cannot be written; the process ends, and the next start recovers",
		"state_dir", cfg.State.Dir, "disk", strings.TrimSpace(filesystemOf(cfg.State.Dir)), "reason", message)
	os.Exit(1) // failed: a supervisor starts it again
}
