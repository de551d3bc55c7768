package stream

import (
	"context"
	"time"

	"dinnerbell/stream/sink"
)

const (
	// clockEvery is how often this machine's clock is compared with Postgres'.
	clockEvery = time.Minute
	// clockPrecision is how precise a comparison must be to count: one whose query waited
	// for a connection, or for a slow server, tells nothing.
	clockPrecision = time.Second
)

// checkClock compares this machine's clock with Postgres'. It warns when they begin to
// differ for certain by more than [sink.MaxSkew], and says when they agree again.
func (s *Service) checkClock(ctx context.Context, conn sink.Querier) error {
	skew, off, err := sink.ClockSkew(ctx, conn, s.now)
	if err != nil || off > clockPrecision {
		return err
	}
	s.mu.Lock()
	was := s.clockOff
	s.skew, s.skewOff = skew, off
	s.clockOff = skew.Abs()-off > sink.MaxSkew
	is := s.clockOff
	s.mu.Unlock()
	switch {
	case is && !was:
		s.cfg.Logger.Warn("this machine's clock is not Postgres': campaigns start and end by ours; set the one that is wrong",
			"ahead_by", skew.Round(time.Millisecond), "to_mend", "timedatectl set-ntp true")
	case was && !is:
		s.cfg.Logger.Info("this machine's clock agrees with Postgres' again", "ahead_by", skew.Round(time.Millisecond))
	}
	return nil
}

// watchClock checks the clock until ctx ends: either may be set, or drift, long after the
// start. An error is none of the clock's business: the lanes meet it, too.
func (s *Service) watchClock(ctx context.Context) error {
	reader := s.readers.Open()
	defer reader.Close()
	tick := time.NewTicker(s.clockEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		_, err := bounded(ctx, s.cfg.SinkTimeout, func(ctx context.Context) (struct{}, error) { return struct{}{}, s.checkClock(ctx, reader) })
		if err != nil && ctx.Err() == nil {
			s.cfg.Logger.Debug("Postgres' clock cannot be read; the next look comes", "error", err)
		}
	}
}
