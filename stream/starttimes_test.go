package stream

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"dinnerbell/stream/campaign"
)

func keysOf(list []startTime) (out []int64) {
	for _, p := range list {
		out = append(out, p.version)
	}
	return out
}

func TestStartTimes(t *testing.T) {
	now := time.Unix(1000, 0)
	k, other := campaign.Key{Campaign: "c", Restaurant: "r"}, campaign.Key{Campaign: "d", Restaurant: "r"}
	const v1, v2 = int64(1), int64(2)
	for name, c := range map[string]struct {
		act  func(a *startTimes)
		want []int64
	}{
		"earliest first": {func(a *startTimes) {
			a.addCommitted(now, startTime{start: 20, key: other, version: v2}, startTime{start: 10, key: k, version: v1})
		}, []int64{v1, v2}},
		"an edit takes the place": {func(a *startTimes) {
			a.addCommitted(now, startTime{start: 10, key: k, version: v1})
			a.addCommitted(now, startTime{start: 20, key: k, version: v2})
		}, []int64{v2}},
		"a reload that read before the edit does not": {func(a *startTimes) {
			a.addCommitted(now, startTime{start: 20, key: k, version: v2})
			a.addLoaded(now, []startTime{{start: 10, key: k, version: v1}})
		}, []int64{v2}},
		"a reload lists what is not listed": {func(a *startTimes) {
			a.addLoaded(now, []startTime{{start: 10, key: k, version: v1}})
			a.addLoaded(now, []startTime{{start: 10, key: k, version: v1}})
		}, []int64{v1}},
		"moved behind the horizon": {func(a *startTimes) {
			a.addCommitted(now, startTime{start: 10, key: k, version: v1})
			a.addCommitted(now, startTime{start: 1000 + 2*3600, key: k, version: v2})
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			a := newStartTimes(maxWaitingStarts)
			a.takeReload(now)
			c.act(a)
			got := keysOf(a.takeDue(1 << 40))
			if len(got) != len(c.want) {
				t.Fatalf("due %v, want %v", got, c.want)
			}
			for i := range got {
				if got[i] != c.want[i] {
					t.Errorf("due %v, want %v", got, c.want)
				}
			}
			if len(a.listed) > 0 || a.waiting > 0 || a.handingOver != len(got) {
				t.Errorf("%d are listed still", len(a.listed))
			}
		})
	}
}

// The list of starts that lie ahead is bounded, and each campaign is listed when its
// start comes, whatever the clock does meanwhile.
func TestScheduledCampaignsAreListedInTime(t *testing.T) {
	const hour = int64(3600)
	begin := int64(1_000_000)
	for name, c := range map[string]struct {
		starts []int64 // after begin
		clock  []int64 // after begin, in order
		want   []int   // campaigns that were due, at each moment of the clock
	}{
		"spread over hours":                {[]int64{1, 2, 2 * hour, 5 * hour}, []int64{0, 1, 2, hour, 2 * hour, 3*hour + 1, 4 * hour, 5 * hour}, []int{0, 1, 2, 2, 3, 3, 3, 4}},
		"the clock jumps forward":          {[]int64{10, hour + 10, 2 * hour}, []int64{0, 3 * hour}, []int{0, 3}},
		"the clock jumps back":             {[]int64{-10, 10, hour + 10, 2 * hour}, []int64{0, -hour, 9, 10, hour + 10, 2 * hour}, []int{1, 1, 1, 2, 3, 4}},
		"back before anything was due":     {[]int64{-10, -5, 10}, []int64{-hour, -7, 0, 10}, []int{0, 1, 2, 3}},
		"more in a second than are listed": {slices.Repeat([]int64{500}, 100), []int64{0, 499, 500, 501}, []int{0, 0, 100, 100}},
		"more than are listed":             {sequence(100), []int64{0, 30, 60, 99}, []int{1, 31, 61, 100}},
		"more, and the clock jumps":        {sequence(100), []int64{0, 2 * hour, 0, 99}, []int{1, 100, 100, 100}},
	} {
		t.Run(name, func(t *testing.T) {
			table := newPendingTable(begin, c.starts)
			for i, at := range c.clock {
				table.serveDue(time.Unix(begin+at, 0))
				if got := len(c.starts) - len(table.pending); got != c.want[i] {
					t.Fatalf("%d were due by %d s, want %d", got, at, c.want[i])
				}
				if n := len(table.starts.queue); n > 2*table.starts.scheduledLimit() {
					t.Errorf("%d are listed", n)
				}
			}
		})
	}
}

// Whatever order commits, reloads and settings of the clock come in, no campaign is
// missed and none is due early.
func TestStartsAreNotMissed(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		now := int64(1_000_000)
		table := newPendingTable(now, nil)
		table.starts.limit = 3 + r.IntN(2)*1000 // the list is cut often, or never
		latest := now
		for range 60 {
			switch r.IntN(4) {
			case 0:
				now += r.Int64N(9000) - 3000
			case 1:
				now += r.Int64N(3)
			case 2:
				for range r.IntN(30) {
					start := now + r.Int64N(8000) - 200
					latest = max(latest, start)
					table.commit(now, start, r.IntN(2) == 0)
				}
			case 3:
				table.serveDue(time.Unix(now, 0))
			}
		}
		for ; now < latest; now += 100 { // a jump would have all waiting campaigns read anew
			table.serveDue(time.Unix(now, 0))
		}
		table.serveDue(time.Unix(now, 0))
		if len(table.pending) > 0 || table.early > 0 {
			t.Fatalf("seed %d: %d were missed, %d came early", seed, len(table.pending), table.early)
		}
	}
}

// pendingTable stands for the pending rows of the campaign table.
type pendingTable struct {
	starts  *startTimes
	pending map[campaign.Key]int64 // starts
	made    int
	early   int
}

func newPendingTable(begin int64, starts []int64) *pendingTable {
	p := &pendingTable{starts: newStartTimes(3), pending: map[campaign.Key]int64{}}
	for _, at := range starts {
		p.commit(begin, begin+at, false)
	}
	return p
}

// commit adds a row, which is listed now or was committed by another session.
func (p *pendingTable) commit(now, start int64, listed bool) {
	p.made++
	k := campaign.Key{Campaign: fmt.Sprint(p.made), Restaurant: "r"}
	p.pending[k] = start
	if listed || p.starts.horizon >= 0 {
		p.starts.addCommitted(time.Unix(now, 0), startTime{start: start, key: k, version: 1})
	}
}

// serveDue does what campaignStarter.run does until nothing is due.
func (p *pendingTable) serveDue(now time.Time) {
	for {
		if after, until, limit, due := p.starts.takeReload(now); due {
			if n, last := p.load(now, after, until, limit); n == limit {
				p.starts.noteCutReload(last)
			}
		}
		due := p.starts.takeDue(now.Unix())
		for _, d := range due {
			if d.start > now.Unix() {
				p.early++
			}
			delete(p.pending, d.key)
			delete(p.starts.joining, d.key)
		}
		if len(due) > 0 {
			continue
		}
		limit, some := p.starts.takeUnlisted(now.Unix())
		if !some {
			return
		}
		if n, _ := p.load(now, -1, now.Unix(), limit); n == limit {
			p.starts.noteMoreUnlisted(now.Unix())
		}
	}
}

func (p *pendingTable) load(now time.Time, after, until int64, limit int) (n int, last int64) {
	var list []startTime
	for k, start := range p.pending {
		if start > after && start <= until {
			list = append(list, startTime{start: start, key: k, version: 1})
		}
	}
	slices.SortFunc(list, func(a, b startTime) int { return cmp.Compare(a.start, b.start) })
	if len(list) > limit {
		list = list[:limit]
	}
	p.starts.addLoaded(now, list)
	if len(list) > 0 {
		last = list[len(list)-1].start
	}
	return len(list), last
}

// sequence returns 0 to n-1.
func sequence(n int64) (out []int64) {
	for i := range n {
		out = append(out, i)
	}
	return out
}
