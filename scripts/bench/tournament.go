package main

import (
	"context"
	"fmt"

	"dinnerbell/scripts/bench/contender"
	"dinnerbell/scripts/bench/report"
)

// runTournament lets each contender run once per round, in an order that
// rotates. makeLoad makes campaigns of the same size for each run.
func (s *suite) runTournament(ctx context.Context, what string, runs int, field []contestant, makeLoad func() (*contender.CampaignLoad, error)) error {
	for round := range runs {
		for i := range field {
			e := &field[(i+round)%len(field)]
			l, err := makeLoad()
			if err != nil {
				return err
			}
			got, err := contender.Measure(ctx, s.servers, e.Contender, l)
			if err != nil {
				return fmt.Errorf("measure %s of %s: %w", what, e.name, err)
			}
			e.samples = append(e.samples, got)
			s.sayf("%s, run %d of %d: %s %s/s, CPU per million %.2f s own, %.2f s Postgres",
				what, round+1, runs, e.name, report.Thousands(int64(got.Rate)), got.OwnCPU, got.PostgresCPU)
		}
	}
	return nil
}

// contestant is a contender with its results so far.
type contestant struct {
	name string
	contender.Contender
	samples []contender.Sample
}

func (e *contestant) rates() []float64 {
	return valuesOf(e.samples, func(s contender.Sample) float64 { return s.Rate })
}
func (e *contestant) cpu() []float64 {
	return valuesOf(e.samples, func(s contender.Sample) float64 { return s.OwnCPU })
}
func (e *contestant) postgresCPU() []float64 {
	return valuesOf(e.samples, func(s contender.Sample) float64 { return s.PostgresCPU })
}

func valuesOf[T any](list []T, f func(T) float64) []float64 {
	out := make([]float64, len(list))
	for i, v := range list {
		out[i] = f(v)
	}
	return out
}
