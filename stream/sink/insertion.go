package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
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
	// CountOwn: some of the clients may have their row from this campaign and restaurant.
	CountOwn bool

	Written id.List             // clients whose row is new
	Refused string              // why no client of the campaign can have a row; "" if clients can
	LeftOut map[string][]string // reason → clients whose row alone is refused
	Misses  int64               // clients who had a row already
	Own     int64               // those of them whose row is of this restaurant; 0 without CountOwn
}

// RowsDroppedError reports a table that drops rows without an error, or stores other
// ones. It is an ErrRowsDropped.
type RowsDroppedError struct{ What string }

// Error returns what the table does.
func (e *RowsDroppedError) Error() string { return e.What }

// Is reports whether target is ErrRowsDropped.
func (e *RowsDroppedError) Is(target error) bool { return target == ErrRowsDropped }

// refusalScope is the set of clients that a refusal concerns.
type refusalScope uint8

const (
	unknownScope  refusalScope = iota // the error names no constraint of the table
	clientScope                       // a constraint over the client
	campaignScope                     // a constraint over the campaign alone
)

// probes is how many clients are tried alone before a refusal that names no constraint
// counts for the whole campaign.
const probes = 8

// Write writes the rows of clients. Where the table has refused rows of the campaign
// before, it halves the refused clients until it has found each refused row, with at
// most twice as many statements as there are clients. A constraint that does not look
// at the client refuses the whole campaign; so does a refusal in the same words for
// each of a handful of clients.
func (n *Insertion) Write(ctx context.Context, clients *id.List) error {
	texts := make([]string, clients.Len())
	for i := range texts {
		texts[i] = clients.At(i).Text()
	}
	if !n.Guarded {
		err := n.insertRows(ctx, texts)
		if e, ok := errors.AsType[*pgconn.PgError](err); ok && RefusesRow(e) {
			return fmt.Errorf("insert feedback rows: %w: %w", ErrRowRefused, err)
		}
		return err
	}
	refused, err := n.tryRows(ctx, texts)
	if err != nil || refused == nil {
		return err
	}
	if err := n.checkTable(ctx); err != nil {
		return err
	}
	scope, err := n.findScope(ctx, refused)
	switch {
	case err != nil:
		return err
	case scope == campaignScope:
		n.Refused = n.describeRefusal(refused)
		return nil
	case scope == unknownScope && len(texts) > probes:
		if texts, err = n.probeClients(ctx, texts); err != nil || n.Refused != "" {
			return err
		}
	}
	return n.writeHalves(ctx, texts)
}

// checkTable returns the precondition that the table violates now, if there is one: a
// sequence at its end refuses rows too, and the rows are not the cause.
func (n *Insertion) checkTable(ctx context.Context) error {
	c, err := ReadCatalogue(ctx, n.Conn, n.Tables)
	if err != nil {
		return err
	}
	return c.Report().Unmet(nil)
}

// probeClients tries some clients alone and returns the others.
func (n *Insertion) probeClients(ctx context.Context, texts []string) (rest []string, err error) {
	every := len(texts) / probes
	var first *pgconn.PgError
	same := true
	for i, text := range texts {
		if i%every != 0 || i/every >= probes {
			rest = append(rest, text)
			continue
		}
		refused, err := n.tryRows(ctx, []string{text})
		if err != nil {
			return nil, err
		}
		if first == nil {
			first = refused
		}
		if same = same && refused != nil && refused.Code == first.Code && refused.Message == first.Message; refused != nil {
			n.noteLeftOut(text, refused)
		}
	}
	if same {
		n.Refused, n.LeftOut = n.describeRefusal(first), nil
	}
	return rest, nil
}

// writeHalves writes the rows that the table takes and leaves out the others.
func (n *Insertion) writeHalves(ctx context.Context, texts []string) error {
	if len(texts) == 0 || n.Refused != "" {
		return nil
	}
	refused, err := n.tryRows(ctx, texts)
	if err != nil || refused == nil {
		return err
	}
	scope, err := n.findScope(ctx, refused)
	switch {
	case err != nil:
		return err
	case scope == campaignScope:
		n.Refused = n.describeRefusal(refused)
		return nil
	case len(texts) == 1:
		n.noteLeftOut(texts[0], refused)
		return nil
	}
	if err := n.writeHalves(ctx, texts[:len(texts)/2]); err != nil {
		return err
	}
	return n.writeHalves(ctx, texts[len(texts)/2:])
}

func (n *Insertion) noteLeftOut(text string, refused *pgconn.PgError) {
	if n.LeftOut == nil {
		n.LeftOut = map[string][]string{}
	}
	why := n.describeRefusal(refused)
	n.LeftOut[why] = append(n.LeftOut[why], text)
}

// tryRows inserts rows behind a savepoint, all or none. It returns the refusal of the
// table, if there is one.
func (n *Insertion) tryRows(ctx context.Context, texts []string) (refused *pgconn.PgError, err error) {
	if _, err := n.Conn.Exec(ctx, `SAVEPOINT rows`); err != nil {
		return nil, fmt.Errorf("set savepoint: %w", err)
	}
	err = n.insertRows(ctx, texts)
	after := `RELEASE SAVEPOINT rows`
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && RefusesRow(e) {
		refused, err, after = e, nil, `ROLLBACK TO SAVEPOINT rows`
	}
	if err != nil {
		return nil, err
	}
	if _, err := n.Conn.Exec(ctx, after); err != nil {
		return nil, fmt.Errorf("end savepoint: %w", err)
	}
	return refused, nil
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
	return &RowsDroppedError{fmt.Sprintf("it stores no row for %d clients of campaign %s, %s the first, and gives no error", len(left), n.Campaign.ID, left[0])}
}

func (n *Insertion) insertOnce(ctx context.Context, texts []string) ([]id.ID, error) {
	c := n.Campaign
	rows, err := n.Conn.Query(ctx, n.Table.InsertSQL(), c.RestaurantID, c.ID, c.Content, c.Owner, c.OwnerContact, c.Start, c.End, c.Created, n.Trigger, texts)
	if err != nil {
		return nil, err
	}
	asked := map[string]bool{}
	if len(n.Table.Triggers) > 0 {
		for _, text := range texts {
			asked[text] = true
		}
	}
	var returned []id.ID
	var changed string
	var campaign, text, other string
	_, err = pgx.ForEachRow(rows, []any{&campaign, &text, &other}, func() error {
		switch {
		case len(n.Table.Triggers) == 0:
		case campaign != c.ID || !asked[text]:
			changed = fmt.Sprintf("it stores campaign %s, client %s in the place of a row of campaign %s", campaign, text, c.ID)
		case other != "":
			changed = fmt.Sprintf("it stores another %s than campaign %s, client %s has: row and record would differ", other, campaign, text)
		}
		id, err := id.Pack(text)
		returned = append(returned, id)
		return err
	})
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && !RefusesRow(e) {
		err = fmt.Errorf("insert feedback rows: %w", WithFunction(e))
	}
	if err == nil && changed != "" {
		err = &RowsDroppedError{changed}
	}
	return returned, err
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

// findScope looks up the columns of the constraint that refused rows. A constraint over
// none of our columns is not about the rows: a number that a default gave collides.
func (n *Insertion) findScope(ctx context.Context, refused *pgconn.PgError) (refusalScope, error) {
	if refused.ConstraintName == "" || refused.DataTypeName != "" {
		return unknownScope, nil
	}
	columns, err := QueryTexts(ctx, n.Conn, `
SELECT a.attname::text FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey)
WHERE k.conrelid = pg_catalog.to_regclass(pg_catalog.format('%I.%I', $1::text, $2::text)) AND k.conname = $3
UNION
SELECT a.attname::text FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
WHERE i.indrelid = pg_catalog.to_regclass(pg_catalog.format('%I.%I', $1::text, $2::text)) AND c.relname = $3`, refused.SchemaName, refused.TableName, refused.ConstraintName)
	if err != nil {
		return unknownScope, fmt.Errorf("look up constraint %s: %w", refused.ConstraintName, err)
	}
	ours := slices.DeleteFunc(columns, func(name string) bool { return !slices.Contains(record.ColumnNames[:], name) })
	switch {
	case len(ours) == 0 && refused.Code == UniqueViolation:
		return unknownScope, fmt.Errorf("write feedback rows: %w", refused)
	case len(ours) == 0:
		return unknownScope, nil
	case slices.Contains(ours, record.ColumnNames[record.ClientColumn]):
		return clientScope, nil
	}
	return campaignScope, nil
}

// describeRefusal returns a refusal in words for a dead letter.
func (n *Insertion) describeRefusal(refused *pgconn.PgError) string {
	why := fmt.Sprintf("feedback table %s refuses the row: %s (SQLSTATE %s)", n.Tables.Feedback, refused.Message, refused.Code)
	if refused.ConstraintName != "" {
		why += ", constraint " + refused.ConstraintName
	}
	return why
}
