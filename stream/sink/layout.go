package sink

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/halt"
)

// layoutVersion counts the changes of the daemon's tables. A daemon works only on its
// own layout.
const layoutVersion = 2

// migrations hold the statements that bring a layout to the next one, in one
// transaction: migrations[n] begins with layout n. %[1]s is the schema.
var migrations = map[int][]string{
	// Each campaign row gets a version of its own, and separate columns for the lane
	// that delivers the campaign and the partition of the newest message.
	1: {
		`ALTER TABLE %[1]s.campaign ADD COLUMN version int8 NOT NULL DEFAULT 1, ADD COLUMN msg_lane int4, ADD COLUMN contested boolean NOT NULL DEFAULT false`,
		`UPDATE %[1]s.campaign SET msg_lane = lane`,
		`ALTER TABLE %[1]s.campaign ALTER COLUMN msg_lane SET NOT NULL, ALTER COLUMN version DROP DEFAULT, ALTER COLUMN contested DROP DEFAULT`,
	},
}

// readLayoutVersion reads which layout the daemon's tables have.
func readLayoutVersion(ctx context.Context, conn *pgx.Conn, t Tables) (version int, err error) {
	if err := conn.QueryRow(ctx, `SELECT version FROM `+t.Schema+`.layout`).Scan(&version); err != nil {
		return 0, fmt.Errorf("read layout of schema %s: %w; run `dinnerbell setup`", t.Schema, err)
	}
	return version, nil
}

// checkLayout returns an error where the tables are missing or have an older layout,
// and a halt where their layout is newer: only a newer daemon can work on it.
func checkLayout(ctx context.Context, conn *pgx.Conn, t Tables) error {
	version, err := readLayoutVersion(ctx, conn, t)
	switch {
	case err != nil:
		return err
	case version < layoutVersion:
		return fmt.Errorf("the tables of schema %s have layout %d, this dinnerbell works on layout %d; run `dinnerbell setup`, which brings them up", t.Schema, version, layoutVersion)
	case version > layoutVersion:
		return haltOnNewerLayout(t, version)
	}
	return nil
}

func haltOnNewerLayout(t Tables, version int) error {
	return &halt.Error{Part: halt.Stream, Lane: halt.AllLanes, What: fmt.Sprintf("the tables of schema %s have layout %d, which a later dinnerbell has made; this one works on layout %d", t.Schema, version, layoutVersion),
		Hint: "run the version of dinnerbell that made them, or a later one"}
}

// upgradeLayout brings existing tables to the present layout.
func upgradeLayout(ctx context.Context, conn *pgx.Conn, t Tables) ([]string, error) {
	from, err := readLayoutVersion(ctx, conn, t)
	switch {
	case err != nil:
		return nil, err
	case from > layoutVersion:
		return nil, haltOnNewerLayout(t, from)
	case from == layoutVersion:
		return []string{fmt.Sprintf("tables of schema %s: there already", t.Schema)}, nil
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// One setup runs at a time. A running daemon of the former layout loses its
		// lanes: its next step misses the epoch, and its next takeover names the
		// layout. This transaction waits for the daemon's open one.
		if err := tx.QueryRow(ctx, `SELECT version FROM `+t.Schema+`.layout FOR UPDATE`).Scan(&from); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE `+t.Lane+` SET epoch = epoch + 1`); err != nil {
			return err
		}
		// A publication FOR ALL TABLES, as change data capture often makes, forbids the
		// update of a table without a key otherwise.
		if _, err := tx.Exec(ctx, `ALTER TABLE `+t.Schema+`.layout REPLICA IDENTITY FULL`); err != nil {
			return err
		}
		for layout := from; layout < layoutVersion; layout++ {
			if len(migrations[layout]) == 0 {
				return errors.New("this dinnerbell does not know it")
			}
			for _, sql := range migrations[layout] {
				if _, err := tx.Exec(ctx, fmt.Sprintf(sql, t.Schema)); err != nil {
					return err
				}
			}
		}
		_, err := tx.Exec(ctx, `UPDATE `+t.Schema+`.layout SET version = $1`, layoutVersion)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("bring schema %s from layout %d to layout %d: %w; nothing was changed", t.Schema, from, layoutVersion, err)
	}
	return []string{fmt.Sprintf("tables of schema %s: brought to layout %d", t.Schema, layoutVersion)}, nil
}
