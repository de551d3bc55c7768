package halt_test

import (
	"testing"

	"dinnerbell/internal/halt"
)

func TestError(t *testing.T) {
	t.Parallel()
	for want, h := range map[string]halt.Error{
		"halted: slot is lost; to go on: rebuild": {Part: halt.Source, What: "slot is lost", Hint: "rebuild"},
		"halted: slot is lost":                    {Part: halt.Source, What: "slot is lost"},
		"halted: disk is bad; to go on: replace":  {Part: halt.State, What: "disk is bad", Hint: "replace"},
		"lane 0 halted: K > P; to go on: resolve": {Part: halt.Stream, What: "K > P", Hint: "resolve"},
		"halted: K > P; to go on: resolve":        {Part: halt.Stream, Lane: halt.AllLanes, What: "K > P", Hint: "resolve"},
	} {
		if got := h.Error(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
