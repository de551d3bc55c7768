package state

import (
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dinnerbell/state/extsort"
	"dinnerbell/state/statedir"
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
	format storeFormat
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
	return o
}
