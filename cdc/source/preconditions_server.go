package source

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/precondition"
)

// checkReplication makes sure that the role may replicate. Amazon RDS gives that
// right by membership in a role. Postgres asks for the right when a walsender
// begins: a running stream goes on without it.
func checkReplication(ctx context.Context, f *checkFacts) ([]finding, error) {
	if f.streams {
		return nil, nil
	}
	var role string
	var may bool
	err := f.sql.QueryRow(ctx, `
		SELECT rolname::text, rolreplication OR rolsuper OR EXISTS (
		  SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication' AND pg_has_role(r.oid, g.oid, 'USAGE'))
		FROM pg_roles r WHERE rolname = session_user`).Scan(&role, &may)
	if err != nil {
		return nil, fmt.Errorf("read role: %w", err)
	}
	if may {
		return nil, nil
	}
	return newViolation("the role in source.url", "lacks REPLICATION", "it can neither make nor read nor drop a slot",
		"ALTER ROLE "+pgx.Identifier{role}.Sanitize()+" REPLICATION"), nil
}

// checkRoom makes sure that the server has a slot and a walsender for the mirror. A
// rebuild or verification needs another of both.
func checkRoom(ctx context.Context, f *checkFacts) ([]finding, error) {
	var slots, maxSlots, senders, maxSenders int
	var ours, active bool
	err := f.sql.QueryRow(ctx, `
		SELECT count(*), current_setting('max_replication_slots')::int, coalesce(bool_or(slot_name = $1), false),
		       coalesce(bool_or(slot_name = $1 AND active), false),
		       (SELECT count(*) FROM pg_stat_get_wal_senders()), current_setting('max_wal_senders')::int
		FROM pg_replication_slots`, f.db.cfg.Slot).Scan(&slots, &maxSlots, &ours, &active, &senders, &maxSenders)
	if err != nil {
		return nil, fmt.Errorf("count slots and walsenders: %w", err)
	}
	if ours {
		slots--
	}
	if active {
		senders--
	}
	var found []finding
	if f.around != nil && maxSlots-slots > 1 && maxSenders-senders > 1 {
		found = append(found, finding{Found: fmt.Sprintf("others use %d of %d slots and %d of %d walsenders", slots, maxSlots, senders, maxSenders)})
	}
	for _, c := range []struct {
		name    string
		used, n int
	}{{"max_replication_slots", slots, maxSlots}, {"max_wal_senders", senders, maxSenders}} {
		object, all := "the server", fmt.Sprintf("uses %d of %d for others than this daemon", c.used, c.n)
		fix := fmt.Sprintf("ALTER SYSTEM SET %s = %d; -- then restart Postgres", c.name, c.n+2)
		switch free := c.n - c.used; {
		case free < 1:
			found = append(found, newViolation(object, all+" ("+c.name+")", "the mirror cannot replicate", fix)...)
		case free < 2:
			found = append(found, finding{Level: precondition.Warn, Object: object, Found: all + " (" + c.name + ")",
				Effect: "rebuild and verify, which need another one, will be refused", Fix: fix})
		}
	}
	return found, nil
}

// forgottenAfter is the age at which the owner of a prepared transaction has
// probably forgotten it.
const forgottenAfter = 5 * time.Minute

// checkPrepared warns of old prepared transactions: no slot can be made before
// their end, and every slot keeps WAL from their begin on.
func checkPrepared(ctx context.Context, f *checkFacts) ([]finding, error) {
	rows, err := f.sql.Query(ctx, `
		SELECT gid, database::text, owner::text, prepared::text FROM pg_prepared_xacts
		WHERE prepared < now() - make_interval(secs => $1) ORDER BY prepared LIMIT 10`, f.db.cfg.ForgottenAfter.Seconds())
	if err != nil {
		return nil, fmt.Errorf("read prepared transactions: %w", err)
	}
	var b blockingTransaction
	var found []finding
	_, err = pgx.ForEachRow(rows, []any{&b.prepared, &b.database, &b.role, &b.since}, func() error {
		found = append(found, finding{Level: precondition.Warn, Object: "prepared transaction " + quoteLiteral(b.prepared) + " in database " + b.database,
			Found:  fmt.Sprintf("was left by role %s at %s", b.role, b.since),
			Effect: "snapshot, rebuild and verify wait for its end, and the server keeps WAL", Fix: "ROLLBACK PREPARED " + quoteLiteral(b.prepared) + "; -- in that database"})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read prepared transactions: %w", err)
	}
	return found, nil
}

// checkEncoding warns of a database whose texts have no encoding.
func checkEncoding(_ context.Context, f *checkFacts) ([]finding, error) {
	if f.sql.PgConn().ParameterStatus("server_encoding") != "SQL_ASCII" {
		return nil, nil
	}
	return []finding{{Level: precondition.Warn, Object: "database " + f.cat.Source.Database, Found: "has encoding SQL_ASCII, so that an id can be any bytes",
		Effect: "a client or restaurant that is not UTF-8 is left out and counted (bad_ids)"}}, nil
}

// checkIDTypes warns of ids that SQL compares otherwise than by their texts, by
// which a campaign finds its subscribers.
func checkIDTypes(ctx context.Context, f *checkFacts) ([]finding, error) {
	var found []finding
	for _, col := range f.cat.Columns {
		if col.Name != f.db.cfg.RestaurantColumn {
			continue
		}
		var insensitive bool
		err := f.sql.QueryRow(ctx, `
			SELECT t.typname = 'citext' OR NOT coalesce(c.collisdeterministic, true)
			FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_collation c ON c.oid = a.attcollation
			WHERE a.attrelid = $1 AND a.attnum = $2`, f.cat.Source.TableOID, col.num).Scan(&insensitive)
		if err != nil {
			return nil, fmt.Errorf("read collation of column %s: %w", col.Name, err)
		}
		if insensitive {
			found = append(found, finding{Level: precondition.Warn, Object: "column " + col.Name + " of " + f.db.cfg.QuotedTable(),
				Found:  "is citext, or has a collation by which different texts are equal",
				Effect: "a campaign reaches the subscribers whose restaurant is written exactly as in the campaign",
				Fix:    "ALTER TABLE " + f.db.cfg.QuotedTable() + " ALTER " + pgx.Identifier{col.Name}.Sanitize() + " TYPE text; -- or write ids alike"})
		}
	}
	return found, nil
}

// checkOldSnapshots warns of a server that takes old snapshots away (up to 16).
func checkOldSnapshots(ctx context.Context, f *checkFacts) ([]finding, error) {
	var value string
	err := f.sql.QueryRow(ctx, `SELECT coalesce(current_setting('old_snapshot_threshold', true), '-1')`).Scan(&value)
	if err != nil {
		return nil, fmt.Errorf("read old_snapshot_threshold: %w", err)
	}
	if value == "-1" {
		return nil, nil
	}
	return []finding{{Level: precondition.Warn, Object: "the server", Found: "has old_snapshot_threshold " + value,
		Effect: "a snapshot that takes longer fails with \"snapshot too old\" and begins anew", Fix: "ALTER SYSTEM SET old_snapshot_threshold = -1; -- then restart Postgres"}}, nil
}

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
