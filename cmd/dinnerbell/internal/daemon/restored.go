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
func (d *supervisor) dropReplaced(ctx context.Context, h *Engine) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		names, err := h.Store.Replaced()
		if err != nil || len(names) == 0 {
			return err
		}
		if h.Mirror.Status().State == cdc.StateStreaming {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	names, err := h.Store.DropReplaced(ctx)
	switch {
	case ctx.Err() != nil || errors.Is(err, state.ErrCorrupt): // the store reports its damage by itself
		return nil
	case errors.Is(err, fs.ErrPermission):
		d.Logger.Warn("cannot remove the state that a restore has replaced", "error", err)
		return nil
	case err != nil:
		return err
	}
	d.Logger.Info("the restored state has caught up and its rows are good; what it replaced is removed", "removed", names)
	return nil
}
