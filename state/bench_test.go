package state

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"dinnerbell/state/id"
)

// loadRows fills a fresh generation with rows subscriptions spread over restaurants.
func loadRows(t testing.TB, s *Store, rows int, restaurants []id.ID, end id.LSN) {
	t.Helper()
	l, err := s.NewGeneration()
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(7, 7))
	for i := range rows {
		if err := l.Add(rowN(i+1), restaurants[r.IntN(len(restaurants))], randomUUID(9, r)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Finish(Source{Slot: "bench"}, end); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkUndelivered reads the audience of one restaurant; one operation is one
// client. In the second case, a third of the clients were notified before.
func BenchmarkUndelivered(b *testing.B) {
	s := openStore(b, b.TempDir(), Options{ReserveBytes: -1})
	restaurants := makeIDs(4, 1)
	loadRows(b, s, 1_000_000, restaurants, 1)
	campaign := makeIDs(1, 2)[0]
	markEvery(b, s, campaign, restaurants[0], 3)
	for name, c := range map[string]id.ID{"fresh": "", "third-delivered": campaign} {
		b.Run(name, func(b *testing.B) { benchUndelivered(b, s, c, restaurants[0]) })
	}
}

func markEvery(b *testing.B, s *Store, campaign, restaurant id.ID, every int) {
	b.Helper()
	scan, err := s.NewScan()
	if err != nil {
		b.Fatal(err)
	}
	defer scan.Close()
	var all, some id.List
	if _, _, err := scan.Undelivered(&all, "", restaurant, "", 1<<20); err != nil {
		b.Fatal(err)
	}
	for i := 0; i < all.Len(); i += every {
		some.Append(all.At(i))
	}
	if err := s.MarkDelivered(campaign, &some, false); err != nil {
		b.Fatal(err)
	}
}

func benchUndelivered(b *testing.B, s *Store, campaign, restaurant id.ID) { //nolint:thelper // the benchmark itself: a failure must name its line here
	var list id.List
	scan, err := s.NewScan()
	if err != nil {
		b.Fatal(err)
	}
	defer scan.Close()
	b.ReportAllocs()
	b.ResetTimer()
	var after id.ID
	var done bool
	for n := 0; n < b.N; n += list.Len() {
		list.Reset()
		if after, done, err = scan.Undelivered(&list, campaign, restaurant, after, 2000); err != nil {
			b.Fatal(err)
		}
		if done {
			after = ""
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "clients/s")
}

// BenchmarkApply inserts rows in transactions of 1,000; one operation is one row.
func BenchmarkApply(b *testing.B) {
	s := openStore(b, b.TempDir(), Options{ReserveBytes: -1})
	restaurants := makeIDs(2000, 1)
	loadRows(b, s, 500_000, restaurants, 1)
	r := rand.New(rand.NewPCG(3, 3))
	ops := map[string]func(i int) id.Change{
		"insert": func(i int) id.Change {
			return id.Change{Op: id.Insert, Row: rowN(1_000_000 + i), Restaurant: restaurants[r.IntN(2000)], Client: randomUUID(4, r)}
		},
		"update": func(int) id.Change {
			return id.Change{Op: id.Update, Row: rowN(1 + r.IntN(500_000)), Restaurant: restaurants[r.IntN(2000)], Client: randomUUID(4, r)}
		},
	}
	end := id.LSN(1)
	for _, name := range []string{"insert", "update"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			batch := Batch{Changes: make([]id.Change, 0, 1000)}
			for i := range b.N {
				batch.Changes = append(batch.Changes, ops[name](i))
				if len(batch.Changes) < cap(batch.Changes) && i < b.N-1 {
					continue
				}
				end++
				batch.End = end
				if err := s.Apply(&batch); err != nil {
					b.Fatal(err)
				}
				batch.Changes = batch.Changes[:0]
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// BenchmarkLoader loads a table from scratch; one operation is a load. In the
// second case restaurants come one after the other, so that the first chunk is a bad
// sample of the others.
func BenchmarkLoader(b *testing.B) {
	const rows = 2_000_000
	restaurants := makeIDs(2000, 1)
	slices.Sort(restaurants)
	client := func(r *rand.Rand) id.ID { // cheaper than uuid
		b := binary.BigEndian.AppendUint64([]byte{0x01}, r.Uint64()) // 0x01: the tag of a packed UUID
		return id.ID(binary.BigEndian.AppendUint64(b, r.Uint64()))
	}
	for _, c := range []struct {
		name string
		pick func(r *rand.Rand, i int) id.ID
	}{
		{"scattered", func(r *rand.Rand, _ int) id.ID { return restaurants[r.IntN(len(restaurants))] }},
		{"in-order", func(_ *rand.Rand, i int) id.ID { return restaurants[i*len(restaurants)/rows] }},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := openStore(b, b.TempDir(), Options{ReserveBytes: -1})
			b.ReportAllocs()
			start := time.Now()
			for n := range b.N {
				l, err := s.NewGeneration()
				if err != nil {
					b.Fatal(err)
				}
				r, pack := rand.New(rand.NewPCG(7, 7)), id.Packer{}
				for i := range rows {
					pack.Reset()
					if err := l.Add(pack.RowNumber(int64(i)), c.pick(r, i), client(r)); err != nil {
						b.Fatal(err)
					}
				}
				if err := l.Finish(Source{Slot: "bench"}, id.LSN(n+1)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(rows*b.N)/time.Since(start).Seconds(), "rows/s")
		})
	}
}
