package daemon

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"dinnerbell/cdc"
	"dinnerbell/state"
)

// dropReplaced removes the state that a restore has replaced, once the mirror has
// caught up and all rows were found good.
func (s *supervisor) dropReplaced(ctx context.Context, e *Engine) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		names, err := e.Store.Replaced()
		if err != nil || len(names) == 0 {
			return err
		}
		if e.Mirror.Status().State == cdc.StateStreaming {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	names, err := e.Store.DropReplaced(ctx)
	switch {
	case ctx.Err() != nil || errors.Is(err, state.ErrCorrupt): // the store reports its damage by itself
		return nil
	case errors.Is(err, fs.ErrPermission):
		s.Logger.Warn("cannot remove the state that a restore has replaced", "error", err)
		return nil
	case err != nil:
		return err
	}
	s.Logger.Info("the restored state has caught up and its rows are good; the replaced state is removed", "removed", names)
	return nil
}
