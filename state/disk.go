package state

import "fmt"

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

// Disk tells how much room there is; false where the file system cannot tell.
func (s *Store) Disk() (Disk, bool) {
	usage, err := s.o.fs.GetDiskUsage(s.dir)
	if err != nil {
		return Disk{}, false
	}
	return Disk{Free: int64(usage.AvailBytes), Reserve: s.o.reserve(usage.TotalBytes)}, true
}

// reserve is how much of a file system of so many bytes is left alone.
func (o Options) reserve(total uint64) int64 {
	share := int64(float64(total) * o.ReservePercent / 100)
	switch {
	case o.ReserveBytes < 0:
		return 0
	case o.ReserveBytes == 0:
		return share
	case o.ReservePercent == 0:
		return o.ReserveBytes
	}
	return min(o.ReserveBytes, share)
}

// room returns ErrDiskFull if less than the reserve is free. A file system that
// cannot tell has room: a full disk then fails the write.
func (s *Store) room() error {
	if d, ok := s.Disk(); ok && d.Short() {
		return fmt.Errorf("%w: %d MB are free in %s, %d MB are kept in reserve; make room (quarantine-* and replaced-* there may go)",
			ErrDiskFull, d.Free/1e6, s.dir, d.Reserve/1e6)
	}
	return nil
}
