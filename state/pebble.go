package state

import (
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable/block"

	"dinnerbell/state/pebblecheck"
)

// pebbleOptions are what one open of a Pebble store takes.
type pebbleOptions struct {
	*pebble.Options
	logger *pebbleLogger
}

// newPebbleOptions returns options that are sized for the daemon's budget of 300 MB with any number of
// rows: 64 MiB of cache and at most four memtables of 16 MiB.
func (o Options) newPebbleOptions(corrupt func(error)) *pebbleOptions {
	logger := &pebbleLogger{log: o.Logger, fatal: o.Fatal}
	var said atomic.Int64 // the second in which a background error was last logged
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
			// Of flushes and compactions, which are tried again.
			BackgroundError: func(err error) {
				if isDamage(err) {
					corrupt(err)
				}
				if now := time.Now().Unix(); said.Swap(now) != now { // it may be tried again at once, over and over
					o.Logger.Warn("local state: background work failed and is tried again", "error", err)
				}
			},
		},
	}
	// Measured with UUID ids: 61 bytes per subscription with these settings, 64
	// with blocks of 16 KiB, 67 without zstd. The filters are 2.5 of them.
	for i := range p.Levels {
		l := &p.Levels[i]
		l.BlockSize = o.blockBytes
		l.IndexBlockSize = 2 * o.blockBytes
		// For the read before the write of a row that is not stored yet.
		l.FilterPolicy = bloom.FilterPolicy(10)
		l.Compression = func() *block.CompressionProfile { return block.FastestCompression }
	}
	p.Levels[len(p.Levels)-1].Compression = func() *block.CompressionProfile { return block.ZstdCompression }
	p.EnsureDefaults()
	return &pebbleOptions{Options: p, logger: logger}
}

// openPebble opens a store. A damaged one can make Pebble panic, or end in its
// Logger's Fatalf; both are errors here, for the store can be rebuilt.
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
		// Pebble has no type for "comparer|merger name from file … != …".
		return nil, fmt.Errorf("open store: %w: %w", ErrForeign, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return db, nil
}

// pebbleLogger passes Pebble's messages on. Its everyday news is debug detail.
type pebbleLogger struct {
	log   *slog.Logger
	fatal func(string) // Options.Fatal
	// opening is true while pebble.Open runs, on whatever goroutine: what fails is
	// then an error of Open, as far as Pebble lets it be one.
	opening atomic.Bool
}

// logFailed ends the process if the log cannot be written. While the store is
// opened it returns the error, which Pebble then returns from its Open.
func (l *pebbleLogger) logFailed(what string, err error) error {
	if !l.opening.Load() {
		l.Fatalf("%s: %v", what, err)
	}
	return err
}

// Infof implements pebble.Logger.
func (l *pebbleLogger) Infof(format string, args ...any) {
	l.log.Debug("pebble", "message", fmt.Sprintf(format, args...))
}

// Errorf implements pebble.Logger.
func (l *pebbleLogger) Errorf(format string, args ...any) {
	l.log.Warn("pebble", "message", fmt.Sprintf(format, args...))
}

// Fatalf implements pebble.Logger, which must not return: Pebble calls it where
// it cannot go on (the write-ahead log or the manifest was not written), often
// on a goroutine of its own and with its locks held, so that the store cannot
// even be closed. Ending the process is right there. While a store is opened it
// can also be damage that Pebble did not expect: openPebble makes an error of it.
// Not of a full disk: Pebble's Open hangs when it is left that way.
func (l *pebbleLogger) Fatalf(format string, args ...any) {
	stop := &fatalError{message: fmt.Sprintf(format, args...)}
	for _, arg := range args {
		if err, ok := arg.(error); ok {
			stop.cause = err
		}
	}
	l.log.Error("local state cannot go on", "message", stop.message)
	if l.fatal != nil && (!l.opening.Load() || isEnvironmental(stop)) {
		l.fatal(stop.message)
	}
	panic(stop) //nolint:forbidigo // Pebble has no error path here, see above
}

// fatalError is what Fatalf panics with.
type fatalError struct {
	message string
	cause   error // nil if there was none in what Pebble said
}

// Error implements error.
func (e *fatalError) Error() string { return "state: " + e.message }

// Unwrap gives the cause.
func (e *fatalError) Unwrap() error { return e.cause }
