package main

import (
	"context"
	"errors"
	"time"
)

// sample is one measured run.
type sample struct {
	rate     float64 // notifications per second
	own      float64 // CPU seconds of the contender, per million notifications
	postgres float64 // CPU seconds of Postgres, per million notifications
}

// contender delivers loads in its own way.
type contender interface {
	// prepare makes everything ready that is not measured: processes, tables.
	prepare(ctx context.Context, l *load) error
	// deliver returns when everything is delivered. This is what is timed.
	deliver(ctx context.Context, l *load) error
	// settle checks what was delivered and stops what prepare started.
	settle(ctx context.Context, l *load) error
	// pid of the process whose CPU time is the contender's own; 0: none.
	pid() int
}

// measure runs one load through a contender.
func measure(ctx context.Context, s *servers, c contender, l *load) (_ sample, err error) {
	if err := c.prepare(ctx, l); err != nil {
		return sample{}, err
	}
	defer func() { err = errors.Join(err, c.settle(ctx, l)) }()
	own, postgres, err := cpuOf(s, c)
	if err != nil {
		return sample{}, err
	}
	began := time.Now()
	if err := c.deliver(ctx, l); err != nil {
		return sample{}, err
	}
	took := time.Since(began).Seconds()
	ownAfter, postgresAfter, err := cpuOf(s, c)
	if err != nil {
		return sample{}, err
	}
	millions := float64(l.total) / 1e6
	return sample{rate: float64(l.total) / took, own: (ownAfter - own) / millions, postgres: (postgresAfter - postgres) / millions}, nil
}

func cpuOf(s *servers, c contender) (own, postgres float64, err error) {
	if pid := c.pid(); pid != 0 {
		if own, err = cpuSeconds(pid); err != nil {
			return 0, 0, err
		}
	}
	postgres, err = treeSeconds(s.postgres.PID())
	return own, postgres, err
}
