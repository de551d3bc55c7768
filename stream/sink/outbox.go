package sink

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"dinnerbell/stream/record"
)

// ReadOutbox reads and decodes a lane's outbox rows above a step, in order. A damaged
// row is an error that wraps record.ErrCorrupt.
func (t Tables) ReadOutbox(ctx context.Context, conn Querier, lane int32, after int64) ([]*record.Payload, error) {
	rows, err := conn.Query(ctx, `SELECT seq, payload FROM `+t.Outbox+` WHERE lane = $1 AND seq > $2 ORDER BY seq`, lane, after)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Outbox, err)
	}
	payloads, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*record.Payload, error) {
		var seq int64
		var b []byte
		if err := row.Scan(&seq, &b); err != nil {
			return nil, err
		}
		return record.DecodePayload(seq, b)
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Outbox, err)
	}
	return payloads, nil
}

// ClearOutbox deletes a lane's outbox. It returns the decoded rows and the steps whose
// rows are damaged.
func (t Tables) ClearOutbox(ctx context.Context, tx Querier, lane int32) (payloads []*record.Payload, damaged []int64, err error) {
	rows, err := tx.Query(ctx, `DELETE FROM `+t.Outbox+` WHERE lane = $1 RETURNING seq, payload`, lane)
	if err != nil {
		return nil, nil, fmt.Errorf("clear outbox: %w", err)
	}
	var seq int64
	var b []byte
	_, err = pgx.ForEachRow(rows, []any{&seq, &b}, func() error {
		p, err := record.DecodePayload(seq, b)
		if errors.Is(err, record.ErrCorrupt) {
			damaged = append(damaged, seq)
			return nil
		}
		payloads = append(payloads, p)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("clear outbox: %w", err)
	}
	return payloads, damaged, nil
}

// AddToOutbox adds a payload to a lane's outbox as step p.Seq.
func (t Tables) AddToOutbox(ctx context.Context, tx Querier, lane int32, p *record.Payload) error {
	if _, err := tx.Exec(ctx, `INSERT INTO `+t.Outbox+` (lane, seq, notifications, payload) VALUES ($1, $2, $3, $4)`,
		lane, p.Seq, p.Notifications(), p.Encode()); err != nil {
		return fmt.Errorf("fill outbox: %w", err)
	}
	return nil
}
