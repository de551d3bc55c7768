package tablecopy

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/cdc/source"
)

// findTimeout bounds FindRows: without an index over its columns the server reads the
// whole table.
const findTimeout = 30 * time.Second

// FindRows returns the keys of up to limit rows of a client and a restaurant, as the
// table has them now. The ids are compared as the mirror compares them, byte by byte.
func FindRows(ctx context.Context, db *source.DB, restaurant, client string, limit int) (keys []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	sql, err := db.DialSQL(ctx)
	if err != nil {
		return nil, err
	}
	defer source.CloseConn(sql.PgConn())
	err = pgx.BeginTxFunc(ctx, sql, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		cat, err := db.Inspect(ctx, sql, true)
		if err != nil {
			return err
		}
		list, integers := copyColumns(cat.Columns)
		for c := range list {
			if integers[c] {
				list[c] += "::text"
			}
		}
		rows, err := tx.Query(ctx, "SELECT "+list[pgoutput.KeyColumn]+" FROM "+fromTable(db.Config(), cat)+
			" WHERE "+list[pgoutput.ClientColumn]+" = $1 AND "+list[pgoutput.RestaurantColumn]+" = $2 LIMIT $3", client, restaurant, limit)
		if err != nil {
			return err
		}
		keys, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look up a subscription in %s: %w", db.Config().QuotedTable(), err)
	}
	return keys, nil
}
