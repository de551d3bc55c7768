package state

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The reserve where nothing else is asked for: the smaller of the two.
const (
	defaultReserveBytes   = 512_000_000
	defaultReservePercent = 5
)

// Disk is the room on the file system that the state directory lies on, in bytes.
type Disk struct {
	Free    int64 // to this user
	Reserve int64 // of it is left alone; 0: nothing
}

// Short says that the reserve is touched: nothing is applied or loaded.
func (d Disk) Short() bool { return d.Free < d.Reserve }

// diskReserve watches the room on the file system of the state directory.
type diskReserve struct {
	fs      vfs.FS
	dir     string
	bytes   int64   // Options.ReserveBytes
	percent float64 // Options.ReservePercent
}

// measureDisk returns how much room there is; false where the file system cannot tell.
func (r diskReserve) measureDisk() (Disk, bool) {
	usage, err := r.fs.GetDiskUsage(r.dir)
	if err != nil {
		return Disk{}, false
	}
	return Disk{Free: int64(usage.AvailBytes), Reserve: r.reservedBytes(usage.TotalBytes)}, true
}

// reservedBytes returns how much of a file system of total bytes is left alone.
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

// positionBytes bounds the free disk that a batch without changes needs. Such a
// batch writes some hundred bytes, once in a second at most; refused, it would
// keep WAL on the source that nobody needs.
const positionBytes = 128_000_000

// checkRoom returns ErrDiskFull if less than the reserve and more bytes are free. A file
// system that cannot tell has room: a full disk then fails the write.
func (r diskReserve) checkRoom(more int64) error {
	if d, ok := r.measureDisk(); ok && d.Free < d.Reserve+more {
		return fmt.Errorf("%w: %d MB are free in %s, %d MB are kept in reserve; make room (quarantine-* and replaced-* there may go)",
			ErrDiskFull, d.Free/1e6, r.dir, d.Reserve/1e6)
	}
	return nil
}

// checkBatch is check for a batch. One without changes may take of the reserve, down
// to half of it or positionBytes, whichever is less.
func (r diskReserve) checkBatch(b *Batch) error {
	d, ok := r.measureDisk()
	if ok && len(b.Changes) == 0 && d.Free >= min(d.Reserve/2, positionBytes) {
		return nil
	}
	return r.checkRoom(0)
}
