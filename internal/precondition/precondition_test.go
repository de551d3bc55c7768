package precondition_test

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"dinnerbell/internal/halt"
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

// A check that loses its connection costs only itself; a halt is a fact, and wins over
// violations.
func TestRunOverAConnectionThatGetsLost(t *testing.T) {
	t.Parallel()
	halted := &halt.Error{What: "made by a later version", Hint: "run that one"}
	checks := []precondition.Check[int]{
		{Name: "first", At: precondition.AtDoctor, Read: func(context.Context, int) ([]precondition.Finding, error) { return nil, errNoAnswer }, Show: func(int) string { return "not shown" }},
		{Name: "second", At: precondition.AtStart, Read: func(context.Context, int) ([]precondition.Finding, error) { return nil, halted }},
		{Name: "third", At: precondition.AtStart, Read: func(context.Context, int) ([]precondition.Finding, error) { return nil, nil }, Show: strconv.Itoa},
		{Name: "fourth", At: precondition.AtStart, Read: func(ctx context.Context, _ int) ([]precondition.Finding, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}},
	}
	connections := 0
	report, err := precondition.RunOver(t.Context(), checks, precondition.Everything, 10*time.Millisecond, func(context.Context) (int, error) {
		connections++
		return connections, nil
	})
	if !errors.Is(err, errNoAnswer) || len(report) != 4 {
		t.Fatalf("%+v, %v", report, err)
	}
	for i, want := range []precondition.Finding{
		{Name: "first", Level: precondition.Unknown, Found: "cannot be checked: no answer"},
		{Name: "second", Level: precondition.Fail, Found: "made by a later version", Fix: "run that one"},
		{Name: "third", Level: precondition.OK, Found: "3"},
		{Name: "fourth", Level: precondition.Unknown, Found: "cannot be checked: no answer within 10ms: context deadline exceeded"},
	} {
		if report[i] != want {
			t.Errorf("%+v, want %+v", report[i], want)
		}
	}
	if err := report.Unmet(halted); !errors.Is(err, error(halted)) {
		t.Errorf("the halt became %v", err)
	}
	lost, err := precondition.RunOver(t.Context(), checks, precondition.AtStart, time.Second, func(context.Context) (int, error) { return 0, errNoAnswer })
	if len(lost.At(precondition.Unknown)) != 3 || !errors.Is(err, errNoAnswer) {
		t.Errorf("without a connection: %+v, %v", lost, err)
	}
	if made, _ := precondition.Run(t.Context(), checks[2:3], precondition.AtStart, 7); made[0].Found != precondition.PlainOK {
		t.Errorf("at the start %q is shown", made[0].Found)
	}
}
