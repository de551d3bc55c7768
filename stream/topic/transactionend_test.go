package topic

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
)

// An end belongs to a transaction of the same producer whose epoch is the end's, or one less
// where the end has raised it. Any other transaction has ended in another way, or its end is
// not known.
func TestEndBelongsToTheTransaction(t *testing.T) {
	t.Parallel()
	end := TransactionEnd{Known: true, ProducerID: 7, ProducerEpoch: 30}
	for name, c := range map[string]struct {
		end   TransactionEnd
		id    int64
		epoch int16
		want  bool
	}{
		"transactions of version 2":  {end, 7, 29, true},
		"transactions of version 1":  {end, 7, 30, true},
		"a transaction before it":    {end, 7, 28, false},
		"a transaction after it":     {end, 7, 31, false},
		"another producer":           {end, 8, 29, false},
		"no end is known":            {TransactionEnd{ProducerID: 7, ProducerEpoch: 30}, 7, 29, false},
		"no end, and the first one":  {TransactionEnd{}, 0, 0, false},
		"no end, and no producer id": {TransactionEnd{}, -1, -1, false},
	} {
		if got := c.end.isOf(kadm.DescribedProducer{ProducerID: c.id, ProducerEpoch: c.epoch}); got != c.want {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
}
