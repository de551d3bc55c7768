package oracle

import (
	"cmp"
	"slices"
	"time"

	"dinnerbell/scripts/chaos/history"
)

// Timelines hold the times at which each subscription began and ended. A
// transaction became visible at some moment from Before to After; between the
// two, the state of a subscription is unknown.
type Timelines map[history.Subscription][]stateChange

// stateChange is the state of a subscription after a transaction.
type stateChange struct {
	before, after time.Duration
	subscribed    bool
}

// NewTimelines replays the committed transactions. The transactions of one
// writer are in order, different writers touch different rows and clients, and
// a truncate runs alone.
func NewTimelines(start map[int64]history.Subscription, txns []*history.Transaction) Timelines {
	txns = slices.Clone(txns)
	slices.SortStableFunc(txns, func(a, b *history.Transaction) int { return cmp.Compare(a.Before, b.Before) })
	t := Timelines{}
	rows, count := map[int64]history.Subscription{}, map[history.Subscription]int{}
	for id, p := range start {
		rows[id] = p
		count[p]++
	}
	for p := range count {
		t[p] = []stateChange{{subscribed: true}}
	}
	for _, x := range txns {
		if x.Committed {
			t.applyTransaction(x, rows, count)
		}
	}
	return t
}

// applyTransaction applies one transaction. No one can see a state between its
// first and its last change.
func (t Timelines) applyTransaction(x *history.Transaction, rows map[int64]history.Subscription, count map[history.Subscription]int) {
	was := map[history.Subscription]bool{}
	add := func(p history.Subscription, n int) {
		if _, ok := was[p]; !ok {
			was[p] = count[p] > 0
		}
		count[p] += n
	}
	if x.Truncate {
		for _, p := range rows {
			add(p, -1)
		}
		clear(rows)
	}
	for _, c := range x.Changes {
		if p, ok := rows[c.Row]; ok {
			add(p, -1)
			delete(rows, c.Row)
		}
		if c.New != nil {
			add(*c.New, 1)
			rows[c.Row] = *c.New
		}
	}
	for p, before := range was {
		if now := count[p] > 0; now != before {
			t[p] = append(t[p], stateChange{x.Before, x.After, now})
		}
	}
}

// certainlySince reports whether p was certainly subscribed at every moment
// since from.
func (t Timelines) certainlySince(p history.Subscription, from time.Duration) bool {
	certain := false
	for _, s := range t[p] {
		if s.after <= from {
			certain = s.subscribed
		} else if !s.subscribed || !certain {
			return false
		}
	}
	return certain
}

// possiblyWithin reports whether p may have been subscribed at some moment in
// [from, to].
func (t Timelines) possiblyWithin(p history.Subscription, from, to time.Duration) bool {
	last := false // the certain state before the change under consideration
	for _, s := range t[p] {
		if s.after > from {
			if last {
				return true // subscribed at least until this change became visible
			}
			if s.before > to {
				return false
			}
		}
		last = s.subscribed
	}
	return last
}
