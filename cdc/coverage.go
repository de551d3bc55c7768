package cdc

import (
	"context"

	"dinnerbell/state"
	"dinnerbell/state/id"
)

// Coverage asks the source, once, from which states the slot goes on. For one
// that shows src as of end the answer is "" if it does, so that nothing is lost
// from there on, and otherwise why a new snapshot would be needed.
//
// The states are read by read, in the middle: a daemon that runs brings its
// newest checkpoint forward meanwhile, which must neither be seen as behind a
// newer slot nor as ahead of an older server.
func Coverage(ctx context.Context, cfg Config, read func() error) (func(src state.Source, end id.LSN) string, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	sql, err := cfg.dialSQL(ctx)
	if err != nil {
		return nil, err
	}
	defer closeConn(sql.PgConn())
	slot, err := cfg.readSlot(ctx, sql)
	if err != nil {
		return nil, err
	}
	if err := read(); err != nil {
		return nil, err
	}
	cat, past, err := cfg.inspectWithTimeline(ctx, sql)
	if err != nil {
		return nil, err
	}
	return func(src state.Source, end id.LSN) string {
		_, why := snapshotReason(src, true, end, true, cat, past, slot)
		return why
	}, nil
}
