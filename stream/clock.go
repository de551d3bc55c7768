package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// maxSkew is how far this machine's clock may be from Postgres' before it is
// said. Campaigns start and end by ours: one that is wrong fires them early, or
// late, or never.
const maxSkew = 5 * time.Second

// clockSkew is how far our clock, now, is ahead of Postgres', more or less by at
// most off: half of the time that asking takes.
func clockSkew(ctx context.Context, conn *pgx.Conn, now func() time.Time) (skew, off time.Duration, err error) {
	var theirs time.Time
	before := now()
	if err := conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&theirs); err != nil {
		return 0, 0, fmt.Errorf("read Postgres' clock: %w", err)
	}
	off = now().Sub(before) / 2
	return before.Add(off).Sub(theirs), off, nil
}

// checkClock warns of a clock that is wrong.
func (s *Service) checkClock(ctx context.Context, conn *pgx.Conn, now func() time.Time) error {
	skew, _, err := clockSkew(ctx, conn, now)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.skew = skew
	s.mu.Unlock()
	if skew.Abs() > maxSkew {
		s.cfg.Logger.Warn("this machine's clock is not Postgres': campaigns start and end by ours; set the one that is wrong, then start again",
			"ahead_by", skew.Round(time.Millisecond))
	}
	return nil
}
