package main

// The kinds of transactions and how often each is drawn.
var txnKinds = []struct {
	name   string
	weight int
	make   func(*book) *draft
}{
	{"subscribe", 20, (*book).subscribe},
	{"unsubscribe", 14, (*book).unsubscribe},
	{"resubscribe", 10, (*book).resubscribe},
	{"duplicate", 8, (*book).duplicate},
	{"rekey", 8, (*book).rekeys},
	{"move", 10, (*book).move},
	{"swap", 5, (*book).swap},
	{"touch", 4, (*book).touch},
	{"many", 4, (*book).many},
	{"rollback", 4, (*book).rolledBack},
	{"savepoint", 4, (*book).savepoint},
}

var txnWeights = func() []int {
	out := make([]int, len(txnKinds))
	for i, k := range txnKinds {
		out[i] = k.weight
	}
	return out
}()

// next draws a transaction.
func (b *book) nextTxn() *draft { return txnKinds[odds(b.rnd, txnWeights)].make(b) }

func (b *book) subscribe() *draft {
	d := b.draft("subscribe")
	for range 1 + b.rnd.IntN(3) {
		d.insert(pair{b.own(), b.any()})
	}
	return d
}

// unsubscribe deletes every row of a pair, or only one of them.
func (b *book) unsubscribe() *draft {
	d := b.draft("unsubscribe")
	id, ok := b.pick()
	switch {
	case !ok:
	case b.rnd.IntN(4) == 0:
		d.delete(id)
	default:
		d.delete(b.all(b.rows[id])...)
	}
	return d
}

// resubscribe deletes and inserts in one transaction: nobody may see a gap.
func (b *book) resubscribe() *draft {
	d := b.draft("resubscribe")
	if id, ok := b.pick(); ok {
		p := b.rows[id]
		d.delete(b.all(p)...)
		d.insert(p)
	}
	return d
}

func (b *book) duplicate() *draft {
	d := b.draft("duplicate")
	if id, ok := b.pick(); ok {
		d.insert(b.rows[id], b.rows[id])
	}
	return d
}

func (b *book) rekeys() *draft {
	d := b.draft("rekey")
	for range 1 + b.rnd.IntN(3) {
		if id, ok := b.pick(); ok {
			d.rekey(id)
		}
	}
	return d
}

// move gives a row to another restaurant, or to another client.
func (b *book) move() *draft {
	d := b.draft("move")
	id, ok := b.pick()
	if !ok {
		return d
	}
	p := b.rows[id]
	if b.rnd.IntN(3) == 0 {
		p.Client = b.own()
	} else {
		p.Restaurant = b.any()
	}
	d.update(id, p)
	if b.rnd.IntN(3) == 0 {
		d.rekey(id)
	}
	return d
}

// swap exchanges the restaurants of two rows.
func (b *book) swap() *draft {
	d := b.draft("swap")
	i, ok := b.pick()
	j, _ := b.pick()
	if ok && i != j {
		p, q := b.rows[i], b.rows[j]
		p.Restaurant, q.Restaurant = q.Restaurant, p.Restaurant
		d.update(i, p)
		d.update(j, q)
	}
	return d
}

// touch writes a row as it is.
func (b *book) touch() *draft {
	d := b.draft("touch")
	if id, ok := b.pick(); ok {
		d.update(id, b.rows[id])
	}
	return d
}

// many is one statement over a few hundred rows, and some deletes.
func (b *book) many() *draft {
	d := b.draft("many")
	list := make([]pair, 50+b.rnd.IntN(250))
	for i := range list {
		list[i] = pair{b.own(), b.any()}
	}
	d.insert(list...)
	for range b.rnd.IntN(100) {
		if id, ok := b.pick(); ok {
			d.delete(id)
		}
	}
	return d
}

func (b *book) rolledBack() *draft {
	d := b.subscribe()
	if id, ok := b.pick(); ok {
		d.delete(id)
	}
	d.Kind, d.rollback = "rollback", true
	return d
}

// savepoint takes part of its work back.
func (b *book) savepoint() *draft {
	d := b.draft("savepoint")
	d.insert(pair{b.own(), b.any()})
	undone := b.draft("")
	undone.insert(pair{b.own(), b.any()})
	if id, ok := b.pick(); ok {
		undone.delete(id)
	}
	d.sql = append(d.sql, "SAVEPOINT s")
	d.sql = append(d.sql, undone.sql...)
	d.sql = append(d.sql, "ROLLBACK TO SAVEPOINT s")
	d.insert(pair{b.own(), b.any()})
	return d
}

// truncate empties the table. Two times in three it puts back most of
// everybody's rows in the same transaction, under new ids: for them nothing may
// seem to have happened. rows are those to put back, per book.
func (b *book) truncate(all []*book, rows [][]pair) *draft {
	d := b.draft("truncate")
	d.Truncate = true
	d.sql = append(d.sql, "TRUNCATE subscribers_restaurants")
	if b.rnd.IntN(3) == 0 {
		return d
	}
	for i, o := range all {
		part := o.draft("")
		part.Truncate = true
		part.insert(rows[i]...)
		d.sql = append(d.sql, part.sql...)
		d.Changes = append(d.Changes, part.Changes...)
	}
	return d
}

// refill is what a writer does after a truncate: most of its rows come back.
func (b *book) refill(rows []pair) *draft {
	d := b.draft("refill")
	d.insert(rows...)
	return d
}

// most draws nine tenths of the rows' pairs.
func (b *book) most() []pair {
	var out []pair
	for _, id := range b.ids {
		if b.rnd.IntN(10) > 0 {
			out = append(out, b.rows[id])
		}
	}
	return out
}
