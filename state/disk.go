package state

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The default reserve: the smaller of the two.
const (
	defaultReserveBytes   = 512_000_000
	defaultReservePercent = 5
)

// Disk is the room on the file system that the state directory lies on, in bytes.
type Disk struct {
	Free    int64 // for this user
	Reserve int64 // part of Free that is not used; 0: no reserve
}

// Short reports whether less than the reserve is free: then the store applies and loads
// nothing.
func (d Disk) Short() bool { return d.Free < d.Reserve }

// diskReserve keeps a reserve of room on the file system of the state directory.
type diskReserve struct {
	fs      vfs.FS
	dir     string
	bytes   int64   // Options.ReserveBytes
	percent float64 // Options.ReservePercent
}

// measureDisk returns how much room there is; false where the file system does not
// report it.
func (r diskReserve) measureDisk() (Disk, bool) {
	usage, err := r.fs.GetDiskUsage(r.dir)
	if err != nil {
		return Disk{}, false
	}
	return Disk{Free: int64(usage.AvailBytes), Reserve: r.reservedBytes(usage.TotalBytes)}, true
}

// MeasureDisk returns how much room there is on the file system of dir under the
// options; false where the file system does not report it.
func MeasureDisk(dir string, o Options) (Disk, bool) {
	o = o.withDefaults()
	return diskReserve{fs: o.fs, dir: dir, bytes: o.ReserveBytes, percent: o.ReservePercent}.measureDisk()
}

// reservedBytes returns the reserve on a file system of total bytes.
func (r diskReserve) reservedBytes(total uint64) int64 {
	share := int64(float64(total) * r.percent / 100)
	switch {
	case r.bytes < 0:
		return 0
	case r.bytes == 0:
		return share
	case r.percent == 0:
		return r.bytes
	}
	return min(r.bytes, share)
}

// positionBytes bounds the free disk that a batch without changes needs. Such a batch
// writes some hundred bytes, at most once a second. If the store refused it, the
// source would keep WAL that nobody needs.
const positionBytes = 128_000_000

// checkRoom returns ErrDiskFull if less than the reserve and more bytes are free. Where
// the file system does not report its room, it returns nil: a write to a full disk
// then fails.
func (r diskReserve) checkRoom(more int64) error {
	if d, ok := r.measureDisk(); ok && d.Free < d.Reserve+more {
		return fmt.Errorf("%w: %d MB are free in %s, %d MB are kept in reserve; make room (quarantine-* and replaced-* there may go)",
			ErrDiskFull, d.Free/1e6, r.dir, d.Reserve/1e6)
	}
	return nil
}

// checkBatch is checkRoom for a batch. A batch without changes may take from the
// reserve, down to half of it or positionBytes, whichever is less.
func (r diskReserve) checkBatch(b *Batch) error {
	d, ok := r.measureDisk()
	if ok && len(b.Changes) == 0 && d.Free >= min(d.Reserve/2, positionBytes) {
		return nil
	}
	return r.checkRoom(0)
}
