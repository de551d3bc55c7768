package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"

	"dinnerbell/cmd/dinnerbell/internal/capacity"
	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/internal/precondition"
	"dinnerbell/state"
	"dinnerbell/state/statedir"
)

// checkRoom compares the free disk with what the source table will take.
func checkRoom(_ context.Context, m *machine) ([]finding, error) {
	disk, ok := state.MeasureDisk(m.place, daemon.StateOptions(m.cfg, slog.New(slog.DiscardHandler), ""))
	if !ok {
		return nil, errors.New("the file system does not report its free space")
	}
	units, err := capacity.Default()
	if err != nil {
		return nil, err
	}
	has := folderBytes(filepath.Join(m.cfg.State.Dir, statedir.StoreName))
	if m.rows < 0 {
		return nil, fmt.Errorf("the size of the source table is not known; %s are free, %s of them in reserve", terminal.Bytes(disk.Free), terminal.Bytes(disk.Reserve))
	}
	return judgeRoom(disk, int64(float64(m.rows)*units.Subscription.Disk), has, m.cfg.State.Dir), nil
}

// judgeRoom judges a disk for a table that takes so many bytes, where the store has
// some of them already.
func judgeRoom(disk state.Disk, takes, has int64, dir string) []finding {
	room := max(0, disk.Free-disk.Reserve)
	first := max(0, takes-has)
	text := fmt.Sprintf("%s are free beside the reserve of %s; the subscriptions take about %s, and as much again during a rebuild",
		terminal.Bytes(room), terminal.Bytes(disk.Reserve), terminal.Bytes(takes))
	f := finding{Level: precondition.OK, Object: "state.dir " + dir, Found: text}
	const fix = "make room (quarantine-* and replaced-* in state.dir may go), or set state.dir to a folder on a larger disk"
	switch {
	case disk.Short(), room < first:
		f.Level, f.Effect, f.Fix = precondition.Fail, "changes of the subscriptions wait, or the first snapshot does not fit", fix
	case room < first+takes:
		f.Level, f.Effect, f.Fix = precondition.Warn, "a rebuild does not fit", fix
	}
	return []finding{f}
}

// folderBytes adds up the sizes of the files in a folder; 0 without one.
func folderBytes(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error { // files come and go beside a daemon
		if err != nil || !entry.Type().IsRegular() {
			return nil //nolint:nilerr // a file that is gone takes no room
		}
		if info, err := entry.Info(); err == nil {
			sum += info.Size()
		}
		return nil
	})
	return sum
}
