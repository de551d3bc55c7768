package cdc

import (
	"context"
	"fmt"

	"dinnerbell/internal/precondition"
)

// keepSizeSQL reads max_slot_wal_keep_size in bytes; -1: no limit.
const keepSizeSQL = `SELECT CASE WHEN setting::bigint < 0 THEN -1 ELSE setting::bigint << 20 END
	FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'`

// KeepSizeAdvised is the least max_slot_wal_keep_size in bytes that the checks do
// not warn of.
const KeepSizeAdvised = 256 << 20

// checkKeepSize warns of a server that gives the slot up after little WAL.
func checkKeepSize(ctx context.Context, f *checkFacts) ([]finding, error) {
	var size int64
	if err := f.sql.QueryRow(ctx, keepSizeSQL).Scan(&size); err != nil {
		return nil, fmt.Errorf("read max_slot_wal_keep_size: %w", err)
	}
	if size < 0 || size >= KeepSizeAdvised {
		return nil, nil
	}
	effect := fmt.Sprintf("a daemon that is away while that much WAL is written needs a new snapshot afterwards; at least %d MB are advised", KeepSizeAdvised>>20)
	if f.db.cfg.Checkpoints {
		effect += ", since a checkpoint stays restorable without a snapshot only while less than a quarter was written behind it"
	}
	return []finding{{
		Level: precondition.Warn, Object: "the server", Found: fmt.Sprintf("has max_slot_wal_keep_size %d MB", size>>20),
		Effect: effect, Fix: "ALTER SYSTEM SET max_slot_wal_keep_size = '4GB'; SELECT pg_reload_conf()",
	}}, nil
}
