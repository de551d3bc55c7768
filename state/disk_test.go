package state

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dinnerbell/state/id"
)

// limitedFS is a disk with a given number of free bytes.
type limitedFS struct {
	vfs.FS
	free uint64
}

func (f *limitedFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: f.free, TotalBytes: 1 << 40}, nil
}

// A batch without changes may take from the reserve, as long as enough of the reserve is
// left.
func TestPositionOutOfTheReserve(t *testing.T) {
	t.Parallel()
	disk := &limitedFS{FS: vfs.NewMem(), free: 1 << 40}
	s := openStore(t, "d", Options{fs: disk, ReserveBytes: 500_000_000})
	for i, c := range []struct {
		free     uint64
		changes  []id.Change
		refused  bool
		position id.LSN
	}{
		{600_000_000, []id.Change{{Op: id.Insert, Row: id.PackRow("1")}}, false, 10},
		{499_000_000, nil, false, 11},
		{499_000_000, []id.Change{{Op: id.Insert, Row: id.PackRow("2")}}, true, 11},
		{positionBytes, nil, false, 13},
		{positionBytes - 1, nil, true, 13},
		{600_000_000, nil, false, 15},
	} {
		disk.free = c.free
		err := s.Apply(&Batch{End: id.LSN(10 + i), Changes: c.changes})
		if errors.Is(err, ErrDiskFull) != c.refused || err != nil && !c.refused || s.EndLSN() != c.position {
			t.Errorf("%d: %d bytes free, %d changes: %v, position %s; want refused %v, position %s", i, c.free, len(c.changes), err, s.EndLSN(), c.refused, c.position)
		}
	}
}
