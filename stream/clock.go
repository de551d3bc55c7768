package stream

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/stream/sink"
)

// maxSkew is how far this machine's clock may be from Postgres' before it is
// said. Campaigns start and end by ours: one that is wrong fires them early, or
// late, or never.
const maxSkew = 5 * time.Second

// checkClock warns of a clock that is wrong.
func (s *Service) checkClock(ctx context.Context, conn *pgx.Conn, now func() time.Time) error {
	skew, _, err := sink.ClockSkew(ctx, conn, now)
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
