package state

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"dinnerbell/state/id"
)

// BenchmarkApplyLogged inserts rows with the log on and off, by turns, in batches of
// 1,000 transactions and in batches of one; one operation is one row.
func BenchmarkApplyLogged(b *testing.B) {
	for _, size := range []int{1000, 1} {
		for _, log := range []int64{0, 256_000_000, 0, 256_000_000} {
			b.Run(fmt.Sprintf("batch=%d/log=%d", size, log), func(b *testing.B) {
				s := openStore(b, b.TempDir(), Options{ReserveBytes: -1, Log: LogOptions{Bytes: log, Age: 7 * 24 * time.Hour}})
				restaurants := makeIDs(2000, 1)
				r := rand.New(rand.NewPCG(3, 3))
				batch, now := Batch{End: 1}, time.Now()
				b.ReportAllocs()
				b.ResetTimer()
				for i := range b.N {
					batch.End++
					batch.Changes = append(batch.Changes, id.Change{Op: id.Insert, Row: rowN(i), Restaurant: restaurants[r.IntN(2000)], Client: randomUUID(4, r)})
					batch.Transactions = append(batch.Transactions, TransactionEnd{Changes: 1, End: batch.End, Time: now})
					if len(batch.Changes) < size && i < b.N-1 {
						continue
					}
					if err := s.Apply(&batch); err != nil {
						b.Fatal(err)
					}
					batch.Changes, batch.Transactions = batch.Changes[:0], batch.Transactions[:0]
				}
				if _, err := s.Sync(); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
			})
		}
	}
}

// BenchmarkHistory reads all of a full log of 256 MB for a client who is not in it; and
// one piece of it as a reader does.
func BenchmarkHistory(b *testing.B) {
	s := openStore(b, b.TempDir(), Options{ReserveBytes: -1, Log: LogOptions{Bytes: 256_000_000}})
	restaurants := makeIDs(2000, 1)
	r := rand.New(rand.NewPCG(3, 3))
	batch := Batch{End: 1}
	rows := 0
	for floor, _ := s.LogFloor(); floor == 1; floor, _ = s.LogFloor() {
		batch.Changes, batch.Transactions = batch.Changes[:0], batch.Transactions[:0]
		for range 10 {
			rows++
			batch.End++
			batch.Changes = append(batch.Changes, id.Change{Op: id.Insert, Row: rowN(rows % 100_000), Restaurant: restaurants[r.IntN(2000)], Client: randomUUID(4, r)})
			batch.Transactions = append(batch.Transactions, TransactionEnd{Changes: 1, End: batch.End, Time: time.Unix(int64(rows), 0)})
		}
		if err := s.Apply(&batch); err != nil {
			b.Fatal(err)
		}
	}
	b.Logf("%d rows, %d segments", rows, len(s.logw.segments))
	if err := s.db.Flush(); err != nil {
		b.Fatal(err)
	}
	nobody := makeIDs(1, 99)[0]
	b.Run("search", func(b *testing.B) {
		for b.Loop() {
			if h, err := s.History(b.Context(), restaurants[0], nobody, 10); err != nil || len(h.Entries) > 0 {
				b.Fatalf("%+v, %v", h, err)
			}
		}
	})
	b.Run("read", func(b *testing.B) {
		n := 0
		floor, _ := s.LogFloor()
		for b.Loop() {
			for c, done := (LogCursor{End: floor}), false; !done; {
				var err error
				if c, done, err = s.ReadLog(c, 4096, func(*LogEntry) error { n++; return nil }); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "entries/s")
	})
}
