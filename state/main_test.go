package state

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"

	"dinnerbell/state/id"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testOptions keep the disk check out of tests and the memory small.
func testOptions() Options {
	return Options{CacheBytes: 4 << 20, ReserveBytes: -1, memTableBytes: 1 << 20}
}

func openStore(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func packID(t testing.TB, text string) id.ID {
	t.Helper()
	packed, err := id.Pack(text)
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

// randomUUID makes a UUID id out of two numbers.
func randomUUID(kind uint32, r *rand.Rand) id.ID {
	text := fmt.Sprintf("%08x-%04x-4%03x-8%03x-%012x", r.Uint32(), r.Uint32()&0xffff, r.Uint32()&0xfff, kind&0xfff, r.Uint64()&0xffffffffffff)
	packed, err := id.Pack(text)
	if err != nil {
		panic(err) //nolint:forbidigo // the line above only makes UUIDs
	}
	return packed
}

// makeIDs makes n different UUID ids, the same for the same seed.
func makeIDs(n int, seed uint64) []id.ID {
	r := rand.New(rand.NewPCG(seed, 1))
	list := make([]id.ID, n)
	for i := range list {
		list[i] = randomUUID(uint32(seed), r)
	}
	return list
}

func rowN(n int) id.RowID { return id.PackRow(fmt.Sprint(n)) }

func applyChanges(t testing.TB, s *Store, end id.LSN, changes ...id.Change) {
	t.Helper()
	if err := s.Apply(&Batch{Changes: changes, End: end}); err != nil {
		t.Fatal(err)
	}
}

// listClients lists all clients of a restaurant as the join sees them, in steps.
func listClients(t testing.TB, s *Store, campaign, restaurant id.ID, step int) []string {
	t.Helper()
	scan, err := s.NewScan()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := scan.Close(); err != nil {
			t.Error(err)
		}
	}()
	return scanClients(t, scan, campaign, restaurant, step)
}

func scanClients(t testing.TB, scan *Scan, campaign, restaurant id.ID, step int) []string {
	t.Helper()
	var out []string
	var list id.List
	for after, done := id.ID(""), false; !done; {
		list.Reset()
		var err error
		if after, done, err = scan.Undelivered(&list, campaign, restaurant, after, step); err != nil {
			t.Fatal(err)
		}
		if list.Len() > step {
			t.Fatalf("asked for %d clients, got %d", step, list.Len())
		}
		for i := range list.Len() {
			out = append(out, list.At(i).Text())
		}
	}
	return out
}
