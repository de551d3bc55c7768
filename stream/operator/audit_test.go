package operator

import (
	"testing"

	"dinnerbell/stream/record"
)

// The outbox must be contiguous up to P and hold every step above K.
func TestCheckOutbox(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		k, p  int64
		steps []int64
		ok    bool
	}{
		"empty, all shipped":    {k: 5, p: 5, ok: true},
		"empty, one is gone":    {k: 4, p: 5, ok: false},
		"whole":                 {k: 3, p: 5, steps: []int64{4, 5}, ok: true},
		"with shipped steps":    {k: 4, p: 5, steps: []int64{3, 4, 5}, ok: true},
		"a gap":                 {k: 2, p: 5, steps: []int64{3, 5}, ok: false},
		"a gap below K":         {k: 4, p: 5, steps: []int64{2, 4, 5}, ok: false},
		"it ends before P":      {k: 3, p: 5, steps: []int64{3, 4}, ok: false},
		"K is far behind it":    {k: 1, p: 5, steps: []int64{4, 5}, ok: false},
		"K is ahead of P":       {k: 9, p: 5, steps: []int64{5}, ok: true}, // another check's
		"a step is there twice": {k: 3, p: 5, steps: []int64{4, 4, 5}, ok: false},
	} {
		a := &auditor{}
		var outbox []*record.Payload
		for _, seq := range c.steps {
			outbox = append(outbox, &record.Payload{Seq: seq})
		}
		a.checkOutbox(0, c.k, c.p, outbox)
		if len(a.findings) != 1 || a.findings[0].OK != c.ok {
			t.Errorf("%s: %+v", name, a.findings)
		}
	}
}
