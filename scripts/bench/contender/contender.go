// Package contender delivers the same campaigns in several ways: by the daemon,
// by the consumer written by hand, and by COPY and produce alone, which are the
// limits of Postgres and Kafka.
package contender

import (
	"context"
	"errors"
	"time"

	"dinnerbell/scripts/bench/deployment"
	"dinnerbell/scripts/bench/usage"
)

// Sample is the result of one run.
type Sample struct {
	Rate        float64 // notifications per second
	OwnCPU      float64 // CPU seconds of the contender, per million notifications
	PostgresCPU float64 // CPU seconds of Postgres, per million notifications
}

// Contender delivers loads in its own way.
type Contender interface {
	// Prepare starts processes and empties tables, outside the measured time.
	Prepare(ctx context.Context, l *CampaignLoad) error
	// Deliver returns when every notification is delivered. Its duration is
	// measured.
	Deliver(ctx context.Context, l *CampaignLoad) error
	// Settle checks the delivery and stops the processes.
	Settle(ctx context.Context, l *CampaignLoad) error
	// PID is the process whose CPU time is the contender's own; 0 means none.
	PID() int
}

// Measure runs one load through a contender.
func Measure(ctx context.Context, s *deployment.Servers, c Contender, l *CampaignLoad) (_ Sample, err error) {
	if err := c.Prepare(ctx, l); err != nil {
		return Sample{}, err
	}
	defer func() { err = errors.Join(err, c.Settle(ctx, l)) }()
	own, postgres, err := cpuSecondsOf(s, c)
	if err != nil {
		return Sample{}, err
	}
	began := time.Now()
	if err := c.Deliver(ctx, l); err != nil {
		return Sample{}, err
	}
	took := time.Since(began).Seconds()
	ownAfter, postgresAfter, err := cpuSecondsOf(s, c)
	if err != nil {
		return Sample{}, err
	}
	millions := float64(l.Total) / 1e6
	return Sample{Rate: float64(l.Total) / took, OwnCPU: (ownAfter - own) / millions, PostgresCPU: (postgresAfter - postgres) / millions}, nil
}

func cpuSecondsOf(s *deployment.Servers, c Contender) (own, postgres float64, err error) {
	if pid := c.PID(); pid != 0 {
		if own, err = usage.ProcessSeconds(pid); err != nil {
			return 0, 0, err
		}
	}
	postgres, err = usage.TreeSeconds(s.Postgres.PID())
	return own, postgres, err
}
