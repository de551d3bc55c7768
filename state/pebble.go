package state

import (
	"fmt"
	"log/slog"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable/block"

	"dinnerbell/state/pebblecheck"
)

// pebbleOptions configure one open of a Pebble store.
type pebbleOptions struct {
	*pebble.Options
	logger *pebbleLogger
}

// newPebbleOptions returns options for the daemon's memory budget of 300 MB, with any
// number of rows: 64 MiB of cache and at most four memtables of 16 MiB. Pebble calls
// corrupt when it finds damage in the background.
func (o Options) newPebbleOptions(corrupt func(error)) *pebbleOptions {
	logger := &pebbleLogger{log: o.Logger, fatal: o.Fatal}
	var lastWarning atomic.Int64 // the second in which a background error was last logged
	p := &pebble.Options{
		FS:                          pebblecheck.WatchLog(o.fs, logger.logFailed),
		FormatMajorVersion:          pebble.FormatNewest,
		CacheSize:                   o.CacheBytes,
		MaxOpenFiles:                o.OpenFiles,
		MemTableSize:                o.memTableBytes,
		MemTableStopWritesThreshold: 4,
		Logger:                      logger,
		CompactionConcurrencyRange:  func() (lower, upper int) { return 1, 2 },
		EventListener: &pebble.EventListener{
			DataCorruption: func(info pebble.DataCorruptionInfo) { corrupt(info.Details) },
			// A flush or a compaction failed; Pebble tries it again.
			BackgroundError: func(err error) {
				if isDamage(err) {
					corrupt(err)
				}
				if now := time.Now().Unix(); lastWarning.Swap(now) != now { // Pebble may try again at once, over and over
					o.Logger.Warn("local state: background work failed and is tried again", "error", err)
				}
			},
		},
	}
	// Measured with UUID ids: 60 bytes per subscription with these settings, 63
	// with blocks of 16 KiB, 66 without zstd. The filters take 1.2 bytes of these.
	for i := range p.Levels {
		l := &p.Levels[i]
		l.BlockSize = o.blockBytes
		l.IndexBlockSize = 2 * o.blockBytes
		// The filter serves the read before the write of a row that is not stored yet.
		l.FilterPolicy = rowFilterPolicy{bloom.FilterPolicy(10)}
		l.Compression = func() *block.CompressionProfile { return block.FastestCompression }
	}
	p.Levels[len(p.Levels)-1].Compression = func() *block.CompressionProfile { return block.ZstdCompression }
	p.EnsureDefaults()
	return &pebbleOptions{Options: p, logger: logger}
}

// openPebble opens a store. A damaged store can make Pebble panic, or call Fatalf of
// its logger; openPebble returns both as errors, because the store can be rebuilt.
//
//go:noinline // isInOpen looks for its frame
func openPebble(store string, p *pebbleOptions) (db *pebble.DB, err error) {
	p.logger.opening.Store(true)
	defer p.logger.opening.Store(false)
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		if stop, ok := r.(error); ok && isEnvironmental(stop) {
			db, err = nil, fmt.Errorf("open store: %w", stop)
			return
		}
		db, err = nil, fmt.Errorf("open store: %w: %v", ErrCorrupt, r)
	}()
	db, err = pebble.Open(store, p.Options)
	if err != nil && strings.Contains(err.Error(), "name from file") {
		// Pebble has no error type for "comparer|merger name from file … != …".
		return nil, fmt.Errorf("open store: %w: %w", ErrForeign, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return db, nil
}

// pebbleLogger passes Pebble's messages on; routine messages become debug messages.
type pebbleLogger struct {
	log   *slog.Logger
	fatal func(string) // Options.Fatal
	// opening is true while pebble.Open runs. A write that fails on its goroutine is then
	// an error of Open and does not end the process.
	opening atomic.Bool
}

// isInOpen reports whether pebble.Open has called the logger. Open also waits for a
// flush on a goroutine of Pebble's own, and nothing recovers a panic there.
func (l *pebbleLogger) isInOpen() bool {
	if !l.opening.Load() {
		return false
	}
	open := reflect.ValueOf(openPebble).Pointer()
	pcs := make([]uintptr, 128)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(0, pcs)])
	for {
		f, more := frames.Next()
		if f.Entry == open {
			return true
		}
		if !more {
			return false
		}
	}
}

// logFailed ends the process because the log cannot be written. While the store is
// opened it returns the error instead, which Pebble then returns from its Open.
func (l *pebbleLogger) logFailed(what string, err error) error {
	if !l.isInOpen() {
		l.Fatalf("%s: %v", what, err)
	}
	return err
}

// Infof implements pebble.Logger.
func (l *pebbleLogger) Infof(format string, args ...any) {
	l.log.Debug("pebble", "said", fmt.Sprintf(format, args...))
}

// Errorf implements pebble.Logger.
func (l *pebbleLogger) Errorf(format string, args ...any) {
	l.log.Warn("pebble", "said", fmt.Sprintf(format, args...))
}

// Fatalf implements pebble.Logger and must not return: Pebble calls it where it cannot
// go on (the write-ahead log or the MANIFEST was not written), often on a goroutine of
// its own and with its locks held, so that the store cannot even be closed. So the
// process must end. While a store is opened, the cause can also be damage that Pebble
// did not expect: openPebble returns it as an error. An error of the machine, such as
// a full disk, ends the process even then: Pebble's Open hangs after a panic.
func (l *pebbleLogger) Fatalf(format string, args ...any) {
	stop := &fatalError{message: fmt.Sprintf(format, args...)}
	for _, arg := range args {
		if err, ok := arg.(error); ok {
			stop.cause = err
		}
	}
	l.log.Error("local state cannot go on", "reason", stop.message)
	if l.fatal != nil && (!l.isInOpen() || isEnvironmental(stop)) {
		l.fatal(stop.message)
	}
	panic(stop) //nolint:forbidigo // Pebble has no error path here, see above
}

// fatalError is the value with which Fatalf panics.
type fatalError struct {
	message string
	cause   error // the error among Fatalf's arguments; nil: there was none
}

// Error implements error.
func (e *fatalError) Error() string { return "state: " + e.message }

// Unwrap returns the cause.
func (e *fatalError) Unwrap() error { return e.cause }
