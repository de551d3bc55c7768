package pgoutput

import (
	"testing"

	"dinnerbell/internal/budget"
)

// The decoder allocates only the ids that stay for each change.
func TestDecodeAllocations(t *testing.T) {
	a := newTestAssembler(0)
	feed := func(line string) {
		if _, _, err := a.Add(message(line)); err != nil {
			t.Fatal(err)
		}
	}
	feed("relation 16400 t id:23 restaurant_id:1043 client_id:1043")
	begin, commit := message("begin 100"), message("commit 200")
	insert := message("insert 16400 4711 123e4567-e89b-12d3-a456-426614174000 223e4567-e89b-12d3-a456-426614174000")
	const changes = 100
	budget.Check(t, "allocs_decode", testing.AllocsPerRun(20, func() {
		for _, msg := range [][]byte{begin, commit} {
			if _, _, err := a.Add(msg); err != nil {
				t.Fatal(err)
			}
			for range changes {
				if !a.InTransaction() {
					break
				}
				if _, _, err := a.Add(insert); err != nil {
					t.Fatal(err)
				}
			}
		}
	})/changes)
}
