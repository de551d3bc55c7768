package scenario

import (
	"dinnerbell/scripts/chaos/history"
	"dinnerbell/scripts/chaos/random"
)

// The kinds of transactions and how often each is drawn.
var txnKinds = []struct {
	name   string
	weight int
	make   func(*WriterRows) *TransactionDraft
}{
	{"subscribe", 20, (*WriterRows).draftSubscribe},
	{"unsubscribe", 14, (*WriterRows).draftUnsubscribe},
	{"resubscribe", 10, (*WriterRows).draftResubscribe},
	{"duplicate", 8, (*WriterRows).draftDuplicate},
	{"rekey", 8, (*WriterRows).draftRekey},
	{"move", 10, (*WriterRows).draftMove},
	{"swap", 5, (*WriterRows).draftSwap},
	{"touch", 4, (*WriterRows).draftTouch},
	{"many", 4, (*WriterRows).draftMany},
	{"rollback", 4, (*WriterRows).draftRollback},
	{"savepoint", 4, (*WriterRows).draftSavepoint},
}

var txnWeights = func() []int {
	out := make([]int, len(txnKinds))
	for i, k := range txnKinds {
		out[i] = k.weight
	}
	return out
}()

// NextTransaction draws a transaction.
func (b *WriterRows) NextTransaction() *TransactionDraft {
	return txnKinds[random.WeightedIndex(b.Random, txnWeights)].make(b)
}

func (b *WriterRows) draftSubscribe() *TransactionDraft {
	d := b.NewDraft("subscribe")
	for range 1 + b.Random.IntN(3) {
		d.Insert(history.Subscription{Client: b.drawClient(), Restaurant: b.drawRestaurant()})
	}
	return d
}

// draftUnsubscribe deletes all rows of a subscription, or only one of them.
func (b *WriterRows) draftUnsubscribe() *TransactionDraft {
	d := b.NewDraft("unsubscribe")
	id, ok := b.drawRow()
	switch {
	case !ok:
	case b.Random.IntN(4) == 0:
		d.deleteRows(id)
	default:
		d.deleteRows(b.rowsOf(b.Rows[id])...)
	}
	return d
}

// draftResubscribe deletes and inserts in one transaction; the subscription
// must not seem to end.
func (b *WriterRows) draftResubscribe() *TransactionDraft {
	d := b.NewDraft("resubscribe")
	if id, ok := b.drawRow(); ok {
		p := b.Rows[id]
		d.deleteRows(b.rowsOf(p)...)
		d.Insert(p)
	}
	return d
}

func (b *WriterRows) draftDuplicate() *TransactionDraft {
	d := b.NewDraft("duplicate")
	if id, ok := b.drawRow(); ok {
		d.Insert(b.Rows[id], b.Rows[id])
	}
	return d
}

func (b *WriterRows) draftRekey() *TransactionDraft {
	d := b.NewDraft("rekey")
	for range 1 + b.Random.IntN(3) {
		if id, ok := b.drawRow(); ok {
			d.changeID(id)
		}
	}
	return d
}

// draftMove changes the restaurant or the client of a row.
func (b *WriterRows) draftMove() *TransactionDraft {
	d := b.NewDraft("move")
	id, ok := b.drawRow()
	if !ok {
		return d
	}
	p := b.Rows[id]
	if b.Random.IntN(3) == 0 {
		p.Client = b.drawClient()
	} else {
		p.Restaurant = b.drawRestaurant()
	}
	d.updateRow(id, p)
	if b.Random.IntN(3) == 0 {
		d.changeID(id)
	}
	return d
}

// draftSwap exchanges the restaurants of two rows.
func (b *WriterRows) draftSwap() *TransactionDraft {
	d := b.NewDraft("swap")
	i, ok := b.drawRow()
	j, _ := b.drawRow()
	if ok && i != j {
		p, q := b.Rows[i], b.Rows[j]
		p.Restaurant, q.Restaurant = q.Restaurant, p.Restaurant
		d.updateRow(i, p)
		d.updateRow(j, q)
	}
	return d
}

// draftTouch updates a row without changing it.
func (b *WriterRows) draftTouch() *TransactionDraft {
	d := b.NewDraft("touch")
	if id, ok := b.drawRow(); ok {
		d.updateRow(id, b.Rows[id])
	}
	return d
}

// draftMany inserts a few hundred rows in one statement and deletes some.
func (b *WriterRows) draftMany() *TransactionDraft {
	d := b.NewDraft("many")
	list := make([]history.Subscription, 50+b.Random.IntN(250))
	for i := range list {
		list[i] = history.Subscription{Client: b.drawClient(), Restaurant: b.drawRestaurant()}
	}
	d.Insert(list...)
	for range b.Random.IntN(100) {
		if id, ok := b.drawRow(); ok {
			d.deleteRows(id)
		}
	}
	return d
}

func (b *WriterRows) draftRollback() *TransactionDraft {
	d := b.draftSubscribe()
	if id, ok := b.drawRow(); ok {
		d.deleteRows(id)
	}
	d.Kind, d.Rollback = "rollback", true
	return d
}

// draftSavepoint rolls part of the transaction back.
func (b *WriterRows) draftSavepoint() *TransactionDraft {
	d := b.NewDraft("savepoint")
	d.Insert(history.Subscription{Client: b.drawClient(), Restaurant: b.drawRestaurant()})
	undone := b.NewDraft("")
	undone.Insert(history.Subscription{Client: b.drawClient(), Restaurant: b.drawRestaurant()})
	if id, ok := b.drawRow(); ok {
		undone.deleteRows(id)
	}
	d.SQL = append(d.SQL, "SAVEPOINT s")
	d.SQL = append(d.SQL, undone.SQL...)
	d.SQL = append(d.SQL, "ROLLBACK TO SAVEPOINT s")
	d.Insert(history.Subscription{Client: b.drawClient(), Restaurant: b.drawRestaurant()})
	return d
}

// DraftTruncate empties the table. Two times in three, the same transaction
// inserts most rows of all writers again under new ids; their subscriptions
// must not seem to end. rows are the rows to insert, per writer.
func (b *WriterRows) DraftTruncate(all []*WriterRows, rows [][]history.Subscription) *TransactionDraft {
	d := b.NewDraft("truncate")
	d.Truncate = true
	d.SQL = append(d.SQL, "TRUNCATE subscribers_restaurants")
	if b.Random.IntN(3) == 0 {
		return d
	}
	for i, o := range all {
		part := o.NewDraft("")
		part.Truncate = true
		part.Insert(rows[i]...)
		d.SQL = append(d.SQL, part.SQL...)
		d.Changes = append(d.Changes, part.Changes...)
	}
	return d
}

// DraftRefill inserts most of a writer's rows again after a truncate.
func (b *WriterRows) DraftRefill(rows []history.Subscription) *TransactionDraft {
	d := b.NewDraft("refill")
	d.Insert(rows...)
	return d
}

// DrawMost draws nine tenths of the rows.
func (b *WriterRows) DrawMost() []history.Subscription {
	var out []history.Subscription
	for _, id := range b.ids {
		if b.Random.IntN(10) > 0 {
			out = append(out, b.Rows[id])
		}
	}
	return out
}
