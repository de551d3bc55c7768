package main

import (
	"context"
	"fmt"
)

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
