package main

import (
	"context"
	"errors"
	"fmt"
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

// tournament lets contenders take turns: each round, each of them once, in an
// order that moves on. makeLoad gives each its own campaigns of the same size.
func (s *suite) tournament(ctx context.Context, what string, runs int, field []entry, makeLoad func() (*load, error)) error {
	for round := range runs {
		for i := range field {
			e := &field[(i+round)%len(field)]
			l, err := makeLoad()
			if err != nil {
				return err
			}
			got, err := measure(ctx, s.servers, e.contender, l)
			if err != nil {
				return fmt.Errorf("measure %s of %s: %w", what, e.name, err)
			}
			e.samples = append(e.samples, got)
			s.sayf("%s, run %d of %d: %s %s/s, CPU per million %.2f s own, %.2f s Postgres",
				what, round+1, runs, e.name, thousands(int64(got.rate)), got.own, got.postgres)
		}
	}
	return nil
}

// entry is one contender with its results so far.
type entry struct {
	name string
	contender
	samples []sample
}

func (e *entry) rates() []float64 { return pluck(e.samples, func(s sample) float64 { return s.rate }) }
func (e *entry) cpu() []float64   { return pluck(e.samples, func(s sample) float64 { return s.own }) }
func (e *entry) postgresCPU() []float64 {
	return pluck(e.samples, func(s sample) float64 { return s.postgres })
}

func pluck[T any](list []T, f func(T) float64) []float64 {
	out := make([]float64, len(list))
	for i, v := range list {
		out[i] = f(v)
	}
	return out
}
