package sink

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
)

// Insertion writes one campaign's feedback rows by ON CONFLICT, within the transaction
// of a step. Clients who have a row of the campaign get none.
type Insertion struct {
	Conn     *pgx.Conn
	Tables   Tables
	Table    *FeedbackTable
	Campaign *campaign.Campaign
	Trigger  int64
	// Guarded: the table has refused rows of the campaign before. Write then finds the
	// rows that it refuses and writes the others; otherwise a refused row is an error.
	Guarded bool
	// Suspect: of a guarded insertion that may meet no refused row at all. Where it meets
	// one, and has more than SearchLimit clients, it looks no further and sets TooMany.
	Suspect     bool
	SearchLimit int
	// Taken: the table has taken rows of the campaign before. A refusal that names no
	// constraint of the campaign is then about the clients.
	Taken bool
	// CountOwn: some of the clients may have their row from this campaign and restaurant.
	CountOwn bool

	Written id.List             // clients whose row is new
	Refused string              // why no client of the campaign can have a row; "" if clients can
	LeftOut map[string][]string // reason → clients whose row alone is refused
	TooMany bool                // some rows are refused, and Write has not looked for them: the transaction must be rolled back
	Misses  int64               // clients who had a row already
	Own     int64               // those of them whose row is of this restaurant; 0 without CountOwn

	// Of a guarded insertion.
	unreturned []string                        // clients whose row was neither refused nor returned
	scopes     map[constraintName]refusalScope // of the constraints that have refused rows
	tries      int                             // chunks of rows that were tried
}

// RowsDroppedError reports a table that drops rows without an error, or stores other
// ones. It is an ErrRowsDropped.
type RowsDroppedError struct{ What string }

// Error returns what the table does.
func (e *RowsDroppedError) Error() string { return e.What }

// Is reports whether target is ErrRowsDropped.
func (e *RowsDroppedError) Is(target error) bool { return target == ErrRowsDropped }

// Write writes the rows of clients. Where the table has refused rows of the campaign
// before, it finds each refused row. A constraint that does not look at the client
// refuses the whole campaign; so does, of a campaign without rows, a refusal in the same words for each of a handful
// of clients.
func (n *Insertion) Write(ctx context.Context, clients *id.List) error {
	texts := make([]string, clients.Len())
	for i := range texts {
		texts[i] = clients.At(i).Text()
	}
	if n.Guarded {
		return n.writeGuarded(ctx, texts)
	}
	err := n.insertRows(ctx, texts)
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && RefusesRow(e) {
		return fmt.Errorf("insert feedback rows: %w: %w", ErrRowRefused, err)
	}
	return err
}

// insertRows inserts the rows of clients that have none, and adds these clients to
// Written. A client whose row the insert does not return must have a row already.
func (n *Insertion) insertRows(ctx context.Context, texts []string) error {
	var left []string
	for range 2 { // a row may be deleted in between
		returned, err := n.insertOnce(ctx, texts)
		if err != nil {
			return err
		}
		for _, id := range returned {
			n.Written.Append(id)
		}
		if len(returned) == len(texts) {
			return nil
		}
		if left, err = n.listWithoutRow(ctx, texts); err != nil || len(left) == 0 {
			n.Misses += int64(len(texts) - len(returned))
			if err != nil {
				return err
			}
			return n.countOwn(ctx, texts, returned)
		}
		texts = left
	}
	return n.describeDropped(left)
}

func (n *Insertion) describeDropped(left []string) error {
	return &RowsDroppedError{fmt.Sprintf("it stores no row for %d clients of campaign %s, %s the first, and gives no error", len(left), n.Campaign.ID, left[0])}
}

func (n *Insertion) insertOnce(ctx context.Context, texts []string) ([]id.ID, error) {
	c := n.Campaign
	rows, err := n.Conn.Query(ctx, n.Table.InsertSQL(), c.RestaurantID, c.ID, c.Content, c.Owner, c.OwnerContact, c.Start, c.End, c.Created, n.Trigger, texts)
	if err != nil {
		return nil, err
	}
	asked := n.askedClients(texts)
	var returned []id.ID
	var changed string
	var campaign, text, other string
	_, err = pgx.ForEachRow(rows, []any{&campaign, &text, &other}, func() error {
		if what := n.describeChange(asked, campaign, text, other); what != "" {
			changed = what
		}
		id, err := id.Pack(text)
		returned = append(returned, id)
		return err
	})
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && !RefusesRow(e) {
		err = n.describeFailure(err)
	}
	if err == nil && changed != "" {
		err = &RowsDroppedError{changed}
	}
	return returned, err
}

// describeFailure describes an error that is not about a row: it names the user's
// function that failed.
func (n *Insertion) describeFailure(err error) error {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		err = WithFunction(e)
	}
	return fmt.Errorf("insert feedback rows: %w", err)
}

// askedClients returns the clients as a set where triggers can put others in their place.
func (n *Insertion) askedClients(texts []string) map[string]bool {
	if len(n.Table.Triggers) == 0 {
		return nil
	}
	asked := make(map[string]bool, len(texts))
	for _, text := range texts {
		asked[text] = true
	}
	return asked
}

// describeChange says how a stored row differs from the one that was sent; "" if it does
// not. other names another column whose stored value differs.
func (n *Insertion) describeChange(asked map[string]bool, campaign, client, other string) string {
	switch {
	case len(n.Table.Triggers) == 0:
	case campaign != n.Campaign.ID || !asked[client]:
		return fmt.Sprintf("it stores campaign %s, client %s in the place of a row of campaign %s", campaign, client, n.Campaign.ID)
	case other != "":
		return fmt.Sprintf("it stores another %s than campaign %s, client %s has: row and record would differ", other, campaign, client)
	}
	return ""
}

// listWithoutRow lists the clients that have no row of the campaign.
func (n *Insertion) listWithoutRow(ctx context.Context, texts []string) ([]string, error) {
	rows, err := n.Conn.Query(ctx, n.Table.MissingSQL(""), n.Campaign.ID, texts)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// countOwn counts the clients among texts, but for those of written, whose row is of the
// campaign's restaurant.
func (n *Insertion) countOwn(ctx context.Context, texts []string, written []id.ID) error {
	if !n.CountOwn {
		return nil
	}
	var own int64
	if err := n.Conn.QueryRow(ctx, n.Table.CountOwnSQL(), n.Campaign.ID, texts, n.Campaign.RestaurantID).Scan(&own); err != nil {
		return fmt.Errorf("count rows of campaign %s: %w", n.Campaign.ID, err)
	}
	n.Own += max(own-int64(len(written)), 0) // the new rows are of this restaurant
	return nil
}
