package precondition_test

import (
	"context"
	"errors"
	"testing"

	"dinnerbell/internal/precondition"
)

var errNoAnswer = errors.New("no answer")

// list has one check of each outcome.
var list = []precondition.Check[string]{
	{Name: "a.holds", At: precondition.Always, Read: func(context.Context, string) ([]precondition.Finding, error) {
		return nil, nil
	}},
	{Name: "a.unreadable", At: precondition.AtStart, Read: func(context.Context, string) ([]precondition.Finding, error) {
		return nil, errNoAnswer
	}},
	{Name: "a.violated", At: precondition.AtStart | precondition.AtSession, Read: func(_ context.Context, from string) ([]precondition.Finding, error) {
		return []precondition.Finding{{Level: precondition.Fail, Object: from, Found: "is wrong", Effect: "rows are lost", Fix: "MEND IT"}}, nil
	}},
}

func TestRunGoesOnBehindWhatCannotBeRead(t *testing.T) {
	report, err := precondition.Run(t.Context(), list, precondition.AtStart, "table t")
	if !errors.Is(err, errNoAnswer) {
		t.Errorf("error %v, want the first that kept a fact from being read", err)
	}
	levels := make([]precondition.Level, 0, len(report))
	for _, f := range report {
		levels = append(levels, f.Level)
	}
	want := []precondition.Level{precondition.OK, precondition.Unknown, precondition.Fail}
	if len(levels) != len(want) || levels[0] != want[0] || levels[1] != want[1] || levels[2] != want[2] {
		t.Fatalf("levels %v, want %v", levels, want)
	}
	violation, ok := report.Violation()
	if !ok || violation.Name != "a.violated" {
		t.Errorf("violation %+v, want that of a.violated", violation)
	}
	if got, want := violation.String(), "table t: is wrong; rows are lost (to mend: MEND IT)"; got != want {
		t.Errorf("violation reads %q, want %q", got, want)
	}
}

func TestRunMakesOnlyTheChecksOfTheMoment(t *testing.T) {
	report, err := precondition.Run(t.Context(), list, precondition.AtSetup, "table t")
	if err != nil || len(report) != 1 || report[0].Name != "a.holds" {
		t.Errorf("at setup: %+v, %v; want a.holds alone", report, err)
	}
}
