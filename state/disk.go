package state

import (
	"errors"
	"fmt"
	"slices"
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

// positionBytes bounds the free disk that a batch without changes needs. Such a
// batch writes some hundred bytes, once in a second at most; refused, it would
// keep WAL on the source that nobody needs.
const positionBytes = 128_000_000

// room returns ErrDiskFull if less than the reserve is free. A file system that
// cannot tell has room: a full disk then fails the write.
func (s *Store) room() error { return s.roomFor(0) }

// roomForBatch is room, where a batch without changes may take of the reserve,
// down to half of it or positionBytes, whichever is less.
func (s *Store) roomForBatch(b *Batch) error {
	d, ok := s.Disk()
	if ok && len(b.Changes) == 0 && d.Free >= min(d.Reserve/2, positionBytes) {
		return nil
	}
	return s.room()
}

func (s *Store) roomFor(more int64) error {
	if d, ok := s.Disk(); ok && d.Free < d.Reserve+more {
		return fmt.Errorf("%w: %d MB are free in %s, %d MB are kept in reserve; make room (quarantine-* and replaced-* there may go)",
			ErrDiskFull, d.Free/1e6, s.dir, d.Reserve/1e6)
	}
	return nil
}

// MakeRoom returns nil if more bytes are free beside the reserve. Where they are
// not, checkpoints go, the oldest first: they keep the files of rows that are no
// longer served. Those that an operator asked for stay, and the newest of the
// load that is served, by which the slot is acknowledged. The others lie before
// what was acknowledged, so a restore of them would lead to a new snapshot.
func (s *Store) MakeRoom(more int64) error {
	if err := s.roomFor(more); err == nil {
		return nil
	}
	done, err := s.use()
	if err != nil {
		return err
	}
	defer done()
	s.kept.mu.Lock()
	defer s.kept.mu.Unlock()
	return s.makeRoom(more)
}

// makeRoom is MakeRoom where the caller holds kept.mu.
func (s *Store) makeRoom(more int64) error {
	newest := ""
	if m := s.newest(); m != nil {
		newest = m.ID
	}
	for _, m := range slices.Clone(s.kept.list) {
		full := s.roomFor(more)
		if full == nil {
			return nil
		}
		if m.Cause == CauseAsked || m.ID == newest {
			continue
		}
		if err := s.removeCheckpoint(m.ID); err != nil {
			return errors.Join(full, fmt.Errorf("remove checkpoint %s: %w", m.ID, err))
		}
		s.kept.list = slices.DeleteFunc(s.kept.list, func(o Manifest) bool { return o.ID == m.ID })
		s.log.Warn("removed a checkpoint, for room on the disk", "id", m.ID, "made", m.Made)
	}
	return s.roomFor(more)
}
