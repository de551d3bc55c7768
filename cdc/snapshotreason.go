package cdc

import (
	"context"
	"fmt"

	"dinnerbell/cdc/source"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

// Coverage asks the source, once, from which states the slot goes on. It returns a
// function: for a state of src as of end, that returns "" if the slot goes on from
// there, so that nothing is lost, and otherwise why a new snapshot would be needed.
//
// Coverage calls read, which reads the states, between its own two queries: a
// running daemon brings its newest checkpoint forward meanwhile, and that
// checkpoint must appear neither behind a newer slot nor ahead of an older server.
func Coverage(ctx context.Context, cfg source.Config, read func() error) (func(src state.Source, end id.LSN) string, error) {
	db, err := source.Open(cfg)
	if err != nil {
		return nil, err
	}
	sql, err := db.DialSQL(ctx)
	if err != nil {
		return nil, err
	}
	defer source.CloseConn(sql.PgConn())
	slot, err := db.ReadSlot(ctx, sql)
	if err != nil {
		return nil, err
	}
	if err := read(); err != nil {
		return nil, err
	}
	cat, past, err := db.InspectWithTimeline(ctx, sql)
	if err != nil {
		return nil, err
	}
	return func(src state.Source, end id.LSN) string {
		_, why := snapshotReason(src, true, end, false, cat, past, slot)
		return why
	}, nil
}

// snapshotReason decides whether the stream goes on from the position of the store;
// otherwise it returns why not, or why new rows are needed all the same.
// inTransaction: the store holds a part of a transaction without its end. past are
// the timelines before the server's present one.
func snapshotReason(stored state.Source, complete bool, durable id.LSN, inTransaction bool, cat *source.Catalog, past source.Lineage, slot source.SlotStatus) (source.Verdict, string) {
	if why := streamLossReason(stored, complete, durable, inTransaction, cat, past, slot); why != "" {
		return source.StreamLost, why
	}
	stored.Timeline, stored.History = cat.Source.Timeline, cat.Source.History
	return source.CompareSources(stored, cat.Source)
}

// streamLossReason returns why the stream does not go on from the position of the
// store; "" if it does.
func streamLossReason(stored state.Source, complete bool, durable id.LSN, inTransaction bool, cat *source.Catalog, past source.Lineage, slot source.SlotStatus) string {
	now := cat.Source
	switch {
	case !complete:
		return "there is no complete snapshot yet"
	case stored.SystemID != now.SystemID:
		return fmt.Sprintf("the server is another one (system id %s, was %s)", now.SystemID, stored.SystemID)
	}
	if why := past.Divergence(stored, now, durable, inTransaction); why != "" {
		return why
	}
	promoted := ""
	if stored.Timeline != now.Timeline {
		promoted = fmt.Sprintf(" on the server that was promoted (timeline %d, was %d)", now.Timeline, stored.Timeline)
	}
	switch {
	case stored.TableOID != now.TableOID:
		return fmt.Sprintf("table %s.%s was made again (oid %d, was %d)", now.Schema, now.Table, now.TableOID, stored.TableOID)
	case stored.PublicationOID != now.PublicationOID:
		return fmt.Sprintf("publication %s was made again (oid %d, was %d)", now.Publication, now.PublicationOID, stored.PublicationOID)
	case !slot.Exists:
		return fmt.Sprintf("slot %s does not exist%s", now.Slot, promoted)
	case slot.IsLost():
		return fmt.Sprintf("slot %s lost WAL that was not read yet (%s)", now.Slot, slot.LossReason())
	case slot.Confirmed > durable:
		return fmt.Sprintf("slot %s is at %s, ahead of the local state at %s", now.Slot, slot.Confirmed, durable)
	case durable > cat.WALEnd:
		return fmt.Sprintf("the local state at %s is ahead of the server at %s: it was restored from a backup", durable, cat.WALEnd)
	}
	return ""
}
