package state

import (
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dinnerbell/state/extsort"
	"dinnerbell/state/statedir"
)

// Options configure [Open]. The zero value holds the defaults.
type Options struct {
	// Logger; nil discards.
	Logger *slog.Logger
	// CacheBytes bounds the cache of uncompressed blocks. 0: 64 MiB.
	CacheBytes int64
	// ReserveBytes of free disk, or ReservePercent of the file system, whichever is
	// less, are the reserve: with less free disk, Apply and Add return [ErrDiskFull]
	// before they write, because Pebble cannot go on after a write to a full disk. One
	// of the two may be set alone; both 0: 512 MB and 5; negative ReserveBytes: no
	// check.
	ReserveBytes   int64
	ReservePercent float64
	// OpenFiles bounds the tables that are open at once. 74 is the least that Pebble
	// takes; smaller values count as 74. 0: 1000.
	OpenFiles int
	// KeepCheckpoints is how many checkpoints with [CauseTimed] are kept, and how many
	// with [CauseAsked]. 0: 3.
	KeepCheckpoints int
	// Writer is the program's version. The directory and each checkpoint record it, so
	// that an older program that cannot read them can name it.
	Writer string

	// Log bounds the log of subscription changes. The zero value: there is no log.
	Log LogOptions

	// Distrust makes Open set the existing store aside, however good it looks. It is the
	// damage that was found in the store while it was open; nil: none.
	Distrust error
	// Fatal ends the process. The store calls it where Pebble cannot go on: the
	// write-ahead log or Pebble's MANIFEST could not be written. Fatal must not return,
	// and must not use the store, which may hold its locks at that moment. Nothing that
	// was acknowledged is lost; the next Open recovers. nil: the goroutine panics, which
	// may be one of Pebble's.
	Fatal func(message string)

	// format is the format that is written; the zero value is currentFormat.
	format storeFormat
	// fs is the file system; nil: the real one. Tests crash it.
	fs vfs.FS
	// chunkBytes is how much of a load is sorted in memory at once, while half as much
	// is collected; 0: 16 MiB, about 190,000 rows with UUID ids.
	chunkBytes int
	// fanIn is how many sorted runs of a load are merged at once; 0: MaxFanIn.
	fanIn int
	// memTableBytes is the size of Pebble's memtables; 0: 16 MiB.
	memTableBytes uint64
	// openPauses are the pauses between the attempts of Open; nil: the variable of this
	// name.
	openPauses []time.Duration
	// blockBytes is the size of a table's blocks; 0: 32 KiB.
	blockBytes int
	// logPieceBytes bounds the blobs of the log; 0: 32 KiB.
	logPieceBytes int
	// now is the clock of the log; nil: time.Now.
	now func() time.Time
}

// DefaultKeepCheckpoints is the default of Options.KeepCheckpoints.
const DefaultKeepCheckpoints = 3

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
		o.KeepCheckpoints = DefaultKeepCheckpoints
	}
	if o.format.version == 0 {
		o.format = currentFormat
	}
	if o.fs == nil {
		o.fs = statedir.NewPrivateFS(vfs.Default)
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
	if o.now == nil {
		o.now = time.Now
	}
	return o
}
