package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// The round's population. Restaurant 0 is huge.
const (
	restaurants = 12
	clients     = 2600
	writers     = 3
)

func restaurantName(i int) string {
	switch i {
	case 1:
		return "123e4567-e89b-12d3-a456-426614174000"
	case 2:
		return `chez "L'Été": 50% & <co>`
	}
	return fmt.Sprintf("restaurant-%d", i)
}

// clientName: mostly UUIDs, some that need every kind of quoting.
func clientName(i int) string {
	switch i % 50 {
	case 7:
		return fmt.Sprintf("клиент:%d%%", i)
	case 8:
		return fmt.Sprintf("o'neil \"%d\" \\ <a&b>", i)
	}
	return fmt.Sprintf("%08x-0000-4000-8000-%012x", i*2654435761&0xffffffff, i)
}

// book is one writer's rows: it alone changes them and their clients, so that
// the order of its transactions is the order in which each pair changes.
type book struct {
	writer int
	rnd    *rand.Rand
	rows   map[int64]pair
	ids    []int64 // of rows, in no order; drawn from
	gone   []int64 // ids that may be used again
	next   int64
}

// newBook gives the writer's rows at the beginning.
func newBook(rnd *rand.Rand, writer int) *book {
	b := &book{writer: writer, rnd: rnd, rows: map[int64]pair{}, next: int64(writer) + 1}
	for c := writer; c < clients; c += writers {
		if rnd.IntN(10) > 0 {
			b.put(b.fresh(), pair{clientName(c), restaurantName(0)})
		}
		for range rnd.IntN(3) {
			b.put(b.fresh(), pair{clientName(c), restaurantName(1 + rnd.IntN(restaurants-1))})
		}
	}
	return b
}

func (b *book) put(id int64, p pair) {
	if _, ok := b.rows[id]; !ok {
		b.ids = append(b.ids, id)
	}
	b.rows[id] = p
}

func (b *book) remove(id int64) {
	delete(b.rows, id)
	if i := slices.Index(b.ids, id); i >= 0 {
		b.ids[i] = b.ids[len(b.ids)-1]
		b.ids = b.ids[:len(b.ids)-1]
	}
}

// fresh gives a row id: a new one, or one of a row that is gone.
func (b *book) fresh() int64 {
	if n := len(b.gone); n > 0 && b.rnd.IntN(3) == 0 {
		id := b.gone[n-1]
		b.gone = b.gone[:n-1]
		return id
	}
	id := b.next
	b.next += writers
	return id
}

// own draws a client of this writer, any a restaurant: often the huge one.
func (b *book) own() string {
	return clientName(b.writer + writers*b.rnd.IntN(clients/writers))
}

func (b *book) any() string {
	if b.rnd.IntN(3) == 0 {
		return restaurantName(0)
	}
	return restaurantName(b.rnd.IntN(restaurants))
}

// pick draws one of the rows; false if there is none.
func (b *book) pick() (int64, bool) {
	if len(b.ids) == 0 {
		return 0, false
	}
	return b.ids[b.rnd.IntN(len(b.ids))], true
}

// draft builds a transaction against a copy of what it touches, which becomes
// the book's if it commits.
type draft struct {
	*txn
	sql      []string
	rollback bool // the writer gives the transaction up

	b    *book
	seen map[int64]*pair // as of the draft; nil: deleted
}

func (b *book) draft(kind string) *draft {
	return &draft{txn: &txn{Writer: b.writer, Kind: kind}, b: b, seen: map[int64]*pair{}}
}

// get reads a row as the draft sees it.
func (d *draft) get(id int64) (pair, bool) {
	if p, ok := d.seen[id]; ok {
		if p == nil {
			return pair{}, false
		}
		return *p, true
	}
	p, ok := d.b.rows[id]
	return p, ok && !d.Truncate
}

func (d *draft) set(id int64, p *pair) {
	d.seen[id] = p
	d.Changes = append(d.Changes, change{id, p})
}

func (d *draft) insert(list ...pair) {
	values := make([]string, 0, len(list))
	for _, p := range list {
		id := d.b.fresh()
		d.set(id, &p)
		values = append(values, fmt.Sprintf("(%d,%s,%s)", id, quote(p.Client), quote(p.Restaurant)))
	}
	if len(values) > 0 {
		d.sql = append(d.sql, "INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES "+strings.Join(values, ","))
	}
}

func (d *draft) delete(ids ...int64) {
	var list []string
	for _, id := range ids {
		if _, ok := d.get(id); ok {
			d.set(id, nil)
			list = append(list, fmt.Sprint(id))
		}
	}
	if len(list) > 0 {
		d.sql = append(d.sql, "DELETE FROM subscribers_restaurants WHERE id IN ("+strings.Join(list, ",")+")")
	}
}

func (d *draft) update(id int64, p pair) {
	d.set(id, &p)
	d.sql = append(d.sql, fmt.Sprintf("UPDATE subscribers_restaurants SET client_id = %s, restaurant_id = %s WHERE id = %d", quote(p.Client), quote(p.Restaurant), id))
}

// rekey gives a row another id.
func (d *draft) rekey(id int64) {
	p, ok := d.get(id)
	if !ok {
		return
	}
	to := d.b.fresh()
	d.set(id, nil)
	d.set(to, &p)
	d.sql = append(d.sql, fmt.Sprintf("UPDATE subscribers_restaurants SET id = %d WHERE id = %d", to, id))
}

// accept makes a committed transaction the book's: what it did to the rows
// whose ids are this writer's.
func (b *book) accept(t *txn) {
	if t.Truncate {
		b.clear()
	}
	for _, c := range t.Changes {
		switch {
		case (c.Row-1)%writers != int64(b.writer):
		case c.New == nil:
			b.remove(c.Row)
			b.gone = append(b.gone, c.Row)
		default:
			b.put(c.Row, *c.New)
		}
	}
	b.gone = slices.DeleteFunc(b.gone, func(id int64) bool { _, ok := b.rows[id]; return ok })
}

// clear forgets all rows: the table was truncated.
func (b *book) clear() {
	b.gone = append(b.gone, b.ids...)
	slices.Sort(b.gone)
	b.rows, b.ids = map[int64]pair{}, nil
}

// all lists the rows with a pair.
func (b *book) all(p pair) []int64 {
	var out []int64
	for _, id := range b.ids {
		if b.rows[id] == p {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
