package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"dinnerbell/state/id"
)

// TestLoadDistributions loads rows of which the first chunk is a good, a bad or a
// misleading sample, with ranges that fit into memory and ranges that do not.
func TestLoadDistributions(t *testing.T) {
	t.Parallel()
	const rows = 6000
	clients, many := makeIDs(500, 3), makeIDs(700, 4)
	slices.Sort(many)
	text := func(format string, args ...any) id.ID { return packID(t, fmt.Sprintf(format, args...)) }
	random := func(n int) int { return int(uint32(n) * 2654435761 >> 7) }
	for name, row := range map[string]func(i int) (restaurant, client id.ID){
		"one restaurant":      func(i int) (id.ID, id.ID) { return many[0], clients[random(i)%500] },
		"one, and many":       func(i int) (id.ID, id.ID) { return many[max(0, random(i)%1400-700)], clients[i%500] },
		"in order":            func(i int) (id.ID, id.ID) { return many[i*len(many)/rows], clients[random(i)%500] },
		"in descending order": func(i int) (id.ID, id.ID) { return many[(rows-1-i)*len(many)/rows], clients[i%500] },
		"one pair":            func(int) (id.ID, id.ID) { return many[5], clients[5] },
		"texts that are alike": func(i int) (id.ID, id.ID) {
			return text("restaurant-in-town-%d", random(i)%40), text("client %d", i%300)
		},
		"long texts": func(i int) (id.ID, id.ID) {
			return text("%0200d", random(i)%3), text("%0*d", 1+i%250, i)
		},
		"NULLs first": func(i int) (id.ID, id.ID) {
			if i < rows/2 {
				return many[i%3], ""
			}
			return many[i%700], clients[i%500]
		},
		"NULLs": func(int) (id.ID, id.ID) { return "", "" },
	} {
		for _, chunk := range []int{8 << 10, 64 << 10, 0} {
			t.Run(fmt.Sprint(name, " ", chunk), func(t *testing.T) {
				t.Parallel()
				loadAll(t, chunk, rows, row)
			})
		}
	}
}

// loadAll loads rows and checks all of them.
func loadAll(t *testing.T, chunk, rows int, row func(i int) (restaurant, client id.ID)) {
	t.Helper()
	o := testOptions()
	o.chunkBytes = chunk
	s := openStore(t, t.TempDir(), o)
	l, err := s.NewGeneration()
	if err != nil {
		t.Fatal(err)
	}
	m := modelRows{}
	for i := range rows {
		restaurant, client := row(i)
		at := rowN(i)
		if i%3 == 0 {
			at = id.PackRow(fmt.Sprint("row ", i*7919%rows))
		}
		m[at] = r(restaurant, client)
		if err := l.Add(at, restaurant, client); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Finish(Source{Slot: "s"}, 9); err != nil {
		t.Fatal(err)
	}
	checkRows(t, s, m)
	if err := s.CheckRows(context.Background()); err != nil {
		t.Error(err)
	}
	if got := s.Subscriptions(); got != m.subscriptions() {
		t.Errorf("%d subscriptions, want %d", got, m.subscriptions())
	}
}

func r(restaurant, client id.ID) storedRow { return storedRow{restaurant, client, true} }

// TestLoadDuplicateInRange: a row of the same restaurant and client twice, in a
// range that fits into memory and in one that does not.
func TestLoadDuplicateInRange(t *testing.T) {
	t.Parallel()
	for _, chunk := range []int{8 << 10, 64 << 10} {
		o := testOptions()
		o.chunkBytes = chunk
		s := openStore(t, t.TempDir(), o)
		l, err := s.NewGeneration()
		if err != nil {
			t.Fatal(err)
		}
		clients := makeIDs(3000, 2)
		for i := range clients {
			if err := l.Add(rowN(i), makeIDs(1, 1)[0], clients[i]); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Add(rowN(1234), makeIDs(1, 1)[0], clients[1234]); err != nil {
			t.Fatal(err)
		}
		if err := l.Finish(Source{}, 2); !errors.Is(err, ErrDuplicateRow) {
			t.Errorf("chunks of %d bytes: got %v, want ErrDuplicateRow", chunk, err)
		}
	}
}
