package scenario

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"dinnerbell/scripts/chaos/history"
)

// The round's population. Restaurant 0 has by far the largest audience.
const (
	Restaurants = 12
	clientCount = 2600
	Writers     = 3
)

// RestaurantName returns the id of restaurant i; some ids need quoting.
func RestaurantName(i int) string {
	switch i {
	case 1:
		return "123e4567-e89b-12d3-a456-426614174000"
	case 2:
		return `chez "L'Été": 50% & <co>`
	}
	return fmt.Sprintf("restaurant-%d", i)
}

// clientName returns a UUID for most clients, and for the others names with
// every character that needs quoting.
func clientName(i int) string {
	switch i % 50 {
	case 7:
		return fmt.Sprintf("клиент:%d%%", i)
	case 8:
		return fmt.Sprintf("o'neil \"%d\" \\ <a&b>", i)
	}
	return fmt.Sprintf("%08x-0000-4000-8000-%012x", i*2654435761&0xffffffff, i)
}

// WriterRows are the rows of one writer. No other writer changes them or their
// clients, so the order of the writer's transactions is the order of each
// subscription's changes.
type WriterRows struct {
	Writer int
	Random *rand.Rand
	Rows   map[int64]history.Subscription
	ids    []int64 // ids of rows in no order, to draw from
	gone   []int64 // ids of deleted rows
	next   int64
}

// NewWriterRows draws the rows that the writer has at the beginning.
func NewWriterRows(rnd *rand.Rand, writer int) *WriterRows {
	b := &WriterRows{Writer: writer, Random: rnd, Rows: map[int64]history.Subscription{}, next: int64(writer) + 1}
	for c := writer; c < clientCount; c += Writers {
		if rnd.IntN(10) > 0 {
			b.setRow(b.newRowID(), history.Subscription{Client: clientName(c), Restaurant: RestaurantName(0)})
		}
		for range rnd.IntN(3) {
			b.setRow(b.newRowID(), history.Subscription{Client: clientName(c), Restaurant: RestaurantName(1 + rnd.IntN(Restaurants-1))})
		}
	}
	return b
}

func (b *WriterRows) setRow(id int64, p history.Subscription) {
	if _, ok := b.Rows[id]; !ok {
		b.ids = append(b.ids, id)
	}
	b.Rows[id] = p
}

func (b *WriterRows) removeRow(id int64) {
	delete(b.Rows, id)
	if i := slices.Index(b.ids, id); i >= 0 {
		b.ids[i] = b.ids[len(b.ids)-1]
		b.ids = b.ids[:len(b.ids)-1]
	}
}

// newRowID returns a new id or one of a deleted row.
func (b *WriterRows) newRowID() int64 {
	if n := len(b.gone); n > 0 && b.Random.IntN(3) == 0 {
		id := b.gone[n-1]
		b.gone = b.gone[:n-1]
		return id
	}
	id := b.next
	b.next += Writers
	return id
}

// drawClient draws a client of this writer.
func (b *WriterRows) drawClient() string {
	return clientName(b.Writer + Writers*b.Random.IntN(clientCount/Writers))
}

func (b *WriterRows) drawRestaurant() string {
	if b.Random.IntN(3) == 0 {
		return RestaurantName(0)
	}
	return RestaurantName(b.Random.IntN(Restaurants))
}

// drawRow draws one of the rows; false means that there is none.
func (b *WriterRows) drawRow() (int64, bool) {
	if len(b.ids) == 0 {
		return 0, false
	}
	return b.ids[b.Random.IntN(len(b.ids))], true
}

// TransactionDraft is a transaction under construction. It works on copies of
// the rows; Apply changes the writer's rows after the commit.
type TransactionDraft struct {
	*history.Transaction
	SQL      []string
	Rollback bool // the writer rolls the transaction back

	owner *WriterRows
	seen  map[int64]*history.Subscription // rows that the draft has changed; nil: deleted
}

// NewDraft begins a transaction of a kind.
func (b *WriterRows) NewDraft(kind string) *TransactionDraft {
	return &TransactionDraft{Transaction: &history.Transaction{Writer: b.Writer, Kind: kind}, owner: b, seen: map[int64]*history.Subscription{}}
}

// rowAt returns a row as the draft sees it.
func (d *TransactionDraft) rowAt(id int64) (history.Subscription, bool) {
	if p, ok := d.seen[id]; ok {
		if p == nil {
			return history.Subscription{}, false
		}
		return *p, true
	}
	p, ok := d.owner.Rows[id]
	return p, ok && !d.Truncate
}

func (d *TransactionDraft) changeRow(id int64, p *history.Subscription) {
	d.seen[id] = p
	d.Changes = append(d.Changes, history.RowChange{Row: id, New: p})
}

// Insert inserts rows with one statement.
func (d *TransactionDraft) Insert(list ...history.Subscription) {
	values := make([]string, 0, len(list))
	for _, p := range list {
		id := d.owner.newRowID()
		d.changeRow(id, &p)
		values = append(values, fmt.Sprintf("(%d,%s,%s)", id, quoteLiteral(p.Client), quoteLiteral(p.Restaurant)))
	}
	if len(values) > 0 {
		d.SQL = append(d.SQL, "INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES "+strings.Join(values, ","))
	}
}

func (d *TransactionDraft) deleteRows(ids ...int64) {
	var list []string
	for _, id := range ids {
		if _, ok := d.rowAt(id); ok {
			d.changeRow(id, nil)
			list = append(list, fmt.Sprint(id))
		}
	}
	if len(list) > 0 {
		d.SQL = append(d.SQL, "DELETE FROM subscribers_restaurants WHERE id IN ("+strings.Join(list, ",")+")")
	}
}

func (d *TransactionDraft) updateRow(id int64, p history.Subscription) {
	d.changeRow(id, &p)
	d.SQL = append(d.SQL, fmt.Sprintf("UPDATE subscribers_restaurants SET client_id = %s, restaurant_id = %s WHERE id = %d", quoteLiteral(p.Client), quoteLiteral(p.Restaurant), id))
}

// changeID gives a row another id.
func (d *TransactionDraft) changeID(id int64) {
	p, ok := d.rowAt(id)
	if !ok {
		return
	}
	to := d.owner.newRowID()
	d.changeRow(id, nil)
	d.changeRow(to, &p)
	d.SQL = append(d.SQL, fmt.Sprintf("UPDATE subscribers_restaurants SET id = %d WHERE id = %d", to, id))
}

// Apply applies a committed transaction to the writer's rows. It ignores
// changes to rows with ids of other writers.
func (b *WriterRows) Apply(t *history.Transaction) {
	if t.Truncate {
		b.removeAll()
	}
	for _, c := range t.Changes {
		switch {
		case (c.Row-1)%Writers != int64(b.Writer):
		case c.New == nil:
			b.removeRow(c.Row)
			b.gone = append(b.gone, c.Row)
		default:
			b.setRow(c.Row, *c.New)
		}
	}
	b.gone = slices.DeleteFunc(b.gone, func(id int64) bool { _, ok := b.Rows[id]; return ok })
}

// removeAll forgets all rows, as after TRUNCATE.
func (b *WriterRows) removeAll() {
	b.gone = append(b.gone, b.ids...)
	slices.Sort(b.gone)
	b.Rows, b.ids = map[int64]history.Subscription{}, nil
}

// rowsOf lists the ids of the rows that hold a subscription.
func (b *WriterRows) rowsOf(p history.Subscription) []int64 {
	var out []int64
	for _, id := range b.ids {
		if b.Rows[id] == p {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
