package state

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/vfs"

	"dinnerbell/state/extsort"
)

// Options configure [Open]. The zero value is good.
type Options struct {
	// Logger; nil discards.
	Logger *slog.Logger
	// CacheBytes bounds the cache of uncompressed blocks. 0: 64 MiB.
	CacheBytes int64
	// ReserveBytes of free disk, or ReservePercent of the file system, whichever is
	// less, are left alone: below, Apply and Add return [ErrDiskFull] before they
	// write. Pebble cannot go on after a write that found the disk full, so it is
	// not let come to that. One alone may be set; both 0: 512 MB and 5; negative
	// ReserveBytes: no check.
	ReserveBytes   int64
	ReservePercent float64
	// OpenFiles bounds the tables that are open at once; below 74 it is 74, the least
	// that Pebble takes. 0: 1000.
	OpenFiles int
	// KeepCheckpoints is how many of those that were made in time are kept, and
	// how many of those that were asked for. 0: 3.
	KeepCheckpoints int
	// Writer is the program's version, which the directory and each checkpoint
	// remember: an older program names it when it cannot read them.
	Writer string

	// Distrust is why the store that is there must be set aside whatever it
	// looks like: the damage that was found in it while it was open. nil: none.
	Distrust error
	// Fatal is called where the store cannot go on and nothing can be undone: the
	// write-ahead log or the manifest could not be written. It must not return,
	// and must not touch the store, which may hold its locks at that moment.
	// Nothing that was acknowledged is lost; the next Open recovers. nil panics,
	// on whatever goroutine of Pebble's that is.
	Fatal func(message string)

	// format is what is written; the zero value is the present one.
	format format
	// fs is the file system; nil is the real one. Tests crash it.
	fs vfs.FS
	// chunkBytes is how much of a load is sorted in memory at once, while half
	// as much again is collected; 0: 16 MiB, about 190,000 rows with UUID ids.
	chunkBytes int
	// fanIn is how many sorted runs of a load are merged at once; 0: MaxFanIn.
	fanIn int
	// memTableBytes; 0: 16 MiB.
	memTableBytes uint64
	// openPauses are between the attempts of Open; nil: the variable of this name.
	openPauses []time.Duration
	// blockBytes of a table; 0: 32 KiB.
	blockBytes int
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	if o.ReserveBytes == 0 && o.ReservePercent == 0 {
		o.ReserveBytes, o.ReservePercent = defaultReserveBytes, defaultReservePercent
	}
	if o.KeepCheckpoints == 0 {
		o.KeepCheckpoints = 3
	}
	if o.format.version == 0 {
		o.format = present
	}
	if o.fs == nil {
		o.fs = privateFS{vfs.Default}
	}
	if o.openPauses == nil {
		o.openPauses = openPauses
	}
	if o.chunkBytes == 0 {
		o.chunkBytes = 16 << 20
	}
	if o.fanIn == 0 {
		o.fanIn = extsort.MaxFanIn
	}
	if o.memTableBytes == 0 {
		o.memTableBytes = 16 << 20
	}
	if o.blockBytes == 0 {
		o.blockBytes = 32 << 10
	}
	return o
}

// pebbleOptions are sized for the daemon's budget of 300 MB with any number of
// rows: 64 MiB of cache and at most four memtables of 16 MiB.
func (o Options) pebbleOptions(corrupt func(error)) *pebble.Options {
	logger := pebbleLogger{o.Logger, o.Fatal}
	var said atomic.Int64 // the second in which a background error was last logged
	p := &pebble.Options{
		FS:                          &logFS{o.fs, func(what string, err error) { logger.Fatalf("%s: %v", what, err) }},
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
	return p
}

// pebbleLogger passes Pebble's messages on. Its everyday news is debug detail.
type pebbleLogger struct {
	log   *slog.Logger
	fatal func(string) // Options.Fatal
}

// Infof implements pebble.Logger.
func (l pebbleLogger) Infof(format string, args ...any) {
	l.log.Debug("pebble", "message", fmt.Sprintf(format, args...))
}

// Errorf implements pebble.Logger.
func (l pebbleLogger) Errorf(format string, args ...any) {
	l.log.Warn("pebble", "message", fmt.Sprintf(format, args...))
}

// Fatalf implements pebble.Logger, which must not return: Pebble calls it where
// it cannot go on (the write-ahead log or the manifest was not written), often
// on a goroutine of its own and with its locks held, so that the store cannot
// even be closed. Ending the process is right there. While a store is opened it
// can also be damage that Pebble did not expect: openPebble makes an error of it.
// Not of a full disk: Pebble's Open hangs when it is left that way.
func (l pebbleLogger) Fatalf(format string, args ...any) {
	stop := &fatalError{message: fmt.Sprintf(format, args...)}
	for _, arg := range args {
		if err, ok := arg.(error); ok {
			stop.cause = err
		}
	}
	l.log.Error("local state cannot go on", "message", stop.message)
	if l.fatal != nil && (!calledByOpen() || keeps(stop)) {
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

// calledByOpen says whether openPebble is on this goroutine's stack, where it
// catches a panic.
func calledByOpen() bool {
	pcs := make([]uintptr, 128)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(0, pcs)])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, "state.openPebble") {
			return true
		}
		if !more {
			return false
		}
	}
}
