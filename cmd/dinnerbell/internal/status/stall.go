package status

import (
	"fmt"
	"sync"
	"time"
)

// stallLimit is how long pending work may stand still before the daemon is no
// longer ready. It is longer than any pause of a healthy daemon: a transaction
// timeout, a checkpoint of Postgres, a broker's restart.
const stallLimit = 30 * time.Second

// noProgress is in each reason of a StallDetector, and in no other.
const noProgress = "no progress for"

// StallDetector watches positions that must move while there is work before them.
// Liveness checks do not notice a process that answers and does no work.
type StallDetector struct {
	mu    sync.Mutex
	marks map[string]stallMark // by name of the position
}

// stallMark is a position and the last time at which it moved or had no work before
// it.
type stallMark struct {
	position string
	moved    time.Time
}

// observePosition records a position and whether work is pending before it, and
// returns how long it has stood still; zero if it moves.
func (s *StallDetector) observePosition(now time.Time, name, position string, pending bool) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.marks == nil {
		s.marks = map[string]stallMark{}
	}
	m, seen := s.marks[name]
	if !seen || !pending || m.position != position {
		s.marks[name] = stallMark{position, now}
		return 0
	}
	return now.Sub(m.moved)
}

// Reasons lists the positions that have stood still for too long, as reasons not to
// be ready.
func (s *StallDetector) Reasons(now time.Time, r *Report) []string {
	var reasons []string
	if d := s.observePosition(now, "source", r.Source.AppliedLSN, r.Source.LagBytes != nil && *r.Source.LagBytes > 0); d >= stallLimit {
		reasons = append(reasons, fmt.Sprintf("source: %d bytes behind and "+noProgress+" %s", *r.Source.LagBytes, d.Round(time.Second)))
	}
	for _, l := range r.Lanes {
		name := fmt.Sprintf("lane %d", l.Partition)
		if d := s.observePosition(now, name, fmt.Sprint(l.Epoch, l.Shipped), l.Decided > l.Shipped); d >= stallLimit {
			reasons = append(reasons, fmt.Sprintf("%s: step %d is decided, %d is shipped, and "+noProgress+" %s",
				name, l.Decided, l.Shipped, d.Round(time.Second)))
		}
	}
	return reasons
}
