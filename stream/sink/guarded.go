package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/state/id"
	"dinnerbell/stream/record"
)

// A guarded insertion finds the rows that the feedback table refuses. It tries chunks of
// rows, each behind a savepoint of its own, and each refused chunk again in smaller ones.
// All chunks of one size travel in one round trip, so that the time does not grow with
// the number of refused rows times the round trip.

const (
	// probes is how many clients are tried alone before a refusal that names no constraint
	// counts for the whole campaign.
	probes = 8
	// chunkRows is the size of the chunks that a refused insertion is cut into first. With
	// few refused rows most chunks pass; with many the chunks cost a sixteenth of the tries.
	chunkRows = 16
)

// refusalScope is the set of clients that a refusal concerns.
type refusalScope uint8

const (
	unknownScope  refusalScope = iota // the error names no constraint of the table
	clientScope                       // a constraint over the client
	campaignScope                     // a constraint over the campaign alone
)

// writeGuarded writes the rows that the table takes and leaves out the others, with at
// most 1 + probes + n/16 + n tries for n clients, in at most four round trips and a
// look-up for each constraint that has refused rows.
func (n *Insertion) writeGuarded(ctx context.Context, texts []string) error {
	if err := n.findRefused(ctx, texts); err != nil || n.TooMany {
		return err
	}
	return n.settleUnreturned(ctx)
}

// findRefused is writeGuarded without the check of the rows that were not returned.
func (n *Insertion) findRefused(ctx context.Context, texts []string) error {
	refused, err := n.tryChunks(ctx, [][]string{texts})
	if err != nil || len(refused) == 0 {
		return err
	}
	if err := n.checkTable(ctx); err != nil {
		return err
	}
	scope, err := n.findScope(ctx, refused[0].why)
	switch {
	case err != nil:
		return err
	case scope == campaignScope:
		n.Refused = n.describeRefusal(refused[0].why)
		return nil
	case scope == unknownScope && len(texts) > probes && !n.Taken && n.Written.Len() == 0:
		if texts, err = n.probeClients(ctx, texts); err != nil || n.Refused != "" {
			return err
		}
	}
	if n.Suspect && len(texts) > n.SearchLimit {
		n.TooMany = true
		return nil
	}
	return n.searchChunks(ctx, texts)
}

// searchChunks tries the rows in chunks, and those of refused chunks one by one.
func (n *Insertion) searchChunks(ctx context.Context, texts []string) error {
	var suspects []string
	for _, size := range [...]int{chunkRows, 1} {
		refused, err := n.tryChunks(ctx, slices.Collect(slices.Chunk(texts, size)))
		if err != nil {
			return err
		}
		suspects = suspects[:0:0]
		for _, r := range refused {
			scope, err := n.findScope(ctx, r.why)
			switch {
			case err != nil:
				return err
			case scope == campaignScope:
				n.Refused = n.describeRefusal(r.why)
				return nil
			case len(r.texts) == 1:
				n.noteLeftOut(r.texts[0], r.why)
			default:
				suspects = append(suspects, r.texts...)
			}
		}
		if texts = suspects; len(texts) == 0 {
			return nil
		}
	}
	return nil
}

// probeClients tries some clients alone and returns the others. Where the table refuses
// all of them in the same words, it refuses the campaign.
func (n *Insertion) probeClients(ctx context.Context, texts []string) (rest []string, err error) {
	every := len(texts) / probes
	var alone [][]string
	for i, text := range texts {
		if i%every == 0 && len(alone) < probes {
			alone = append(alone, []string{text})
		} else {
			rest = append(rest, text)
		}
	}
	refused, err := n.tryChunks(ctx, alone)
	if err != nil {
		return nil, err
	}
	if len(refused) == probes && !slices.ContainsFunc(refused, func(r refusedChunk) bool {
		return r.why.Code != refused[0].why.Code || r.why.Message != refused[0].why.Message
	}) {
		n.Refused = n.describeRefusal(refused[0].why)
		return nil, nil
	}
	for _, r := range refused {
		n.noteLeftOut(r.texts[0], r.why)
	}
	return rest, nil
}

// refusedChunk is a chunk of clients that the table has refused.
type refusedChunk struct {
	texts []string
	why   *pgconn.PgError
}

// guardedInsert is the name of the prepared InsertSQL.
const guardedInsert = "insert guarded rows"

// tryChunks inserts each chunk behind a savepoint, all its rows or none, in one round
// trip. It returns the refused chunks in their order.
//
// An error that is not about a row, as of a lock timeout or a cancelled statement, ends
// the insertion. The server has the other chunks already and would wait for a lock in
// each of them, so tryChunks ends the connection, except after one lock conflict: the step
// can be repeated on it then. After a second one it cannot wait for the others: the rows
// of the chunks before stay locked until the last one is answered, so somebody who waits
// for them costs a deadlock_timeout for each chunk.
//
// Nobody waits for an answer, so the same messages must follow a chunk whether it is
// refused or not: where it is taken, RELEASE and SAVEPOINT move the savepoint behind it;
// where it is refused, the server skips both. Then ROLLBACK TO returns to the savepoint
// in either case.
func (n *Insertion) tryChunks(ctx context.Context, chunks [][]string) (refused []refusedChunk, err error) {
	insert, err := n.Conn.Prepare(ctx, guardedInsert, n.Table.InsertSQL())
	if err != nil {
		return nil, fmt.Errorf("prepare the insertion of feedback rows: %w", err)
	}
	p := n.Conn.PgConn().StartPipeline(ctx)
	defer func() {
		if closed := p.Close(); err == nil {
			err = closed
		}
	}()
	if err := n.sendChunks(p, insert, chunks); err != nil {
		return nil, err
	}
	n.tries += len(chunks)
	if err := readToSync(p, nil); err != nil {
		return nil, fmt.Errorf("set savepoint: %w", err)
	}
	var conflict error
	for _, texts := range chunks {
		var returned [][3]string
		err := readToSync(p, func(row [3]string) { returned = append(returned, row) })
		if e, ok := errors.AsType[*pgconn.PgError](err); ok && RefusesRow(e) {
			refused = append(refused, refusedChunk{texts, e})
		} else if IsLockConflict(err) && conflict == nil {
			conflict = err
		} else if IsLockConflict(err) {
			n.abandonConnection(ctx)
			return nil, fmt.Errorf("insert feedback rows, with more than one lock conflict: %s", err) //nolint:errorlint // the step cannot be repeated on this connection
		} else if err != nil {
			n.abandonConnection(ctx)
			return nil, n.describeFailure(err)
		} else if err := n.takeReturned(texts, returned); err != nil {
			return nil, err
		}
		if err := readToSync(p, nil); err != nil {
			return nil, fmt.Errorf("return to savepoint: %w", err)
		}
	}
	if conflict != nil {
		return nil, n.describeFailure(conflict)
	}
	if err := readToSync(p, nil); err != nil {
		return nil, fmt.Errorf("end savepoint: %w", err)
	}
	return refused, nil
}

// sendChunks sends the messages of tryChunks.
func (n *Insertion) sendChunks(p *pgconn.Pipeline, insert *pgconn.StatementDescription, chunks [][]string) error {
	send := func(sql string) { p.SendQueryParams(sql, nil, nil, nil, nil) }
	send(`SAVEPOINT rows`)
	p.SendPipelineSync()
	var args pgx.ExtendedQueryBuilder
	c := n.Campaign
	for _, texts := range chunks {
		if err := args.Build(n.Conn.TypeMap(), insert, []any{c.RestaurantID, c.ID, c.Content, c.Owner, c.OwnerContact, c.Start, c.End, c.Created, n.Trigger, texts}); err != nil {
			return fmt.Errorf("encode feedback rows: %w", err)
		}
		p.SendQueryPrepared(guardedInsert, args.ParamValues, args.ParamFormats, nil)
		send(`RELEASE SAVEPOINT rows`)
		send(`SAVEPOINT rows`)
		p.SendPipelineSync()
		send(`ROLLBACK TO SAVEPOINT rows`)
		p.SendPipelineSync()
	}
	send(`RELEASE SAVEPOINT rows`)
	if err := p.Sync(); err != nil {
		return fmt.Errorf("send feedback rows: %w", err)
	}
	return nil
}

// abandonConnection ends the connection in the middle of an exchange. The server meets that
// at its next answer; the statement that it works on meanwhile is cancelled, so that it holds its
// locks no longer than necessary. Where the cancel fails, the next owner of the lane ends
// the server's session.
func (n *Insertion) abandonConnection(ctx context.Context) {
	conn := n.Conn.PgConn()
	ctx, stop := context.WithTimeout(ctx, cancelPatience)
	defer stop()
	_ = conn.Conn().Close() // before the cancel: otherwise the server goes on with the next statement
	_ = conn.CancelRequest(ctx)
}

// cancelPatience bounds how long abandon waits for the server.
const cancelPatience = time.Second

// readToSync reads the answers up to the next Sync. It calls each for rows of three
// texts, and returns the first error of the server.
func readToSync(p *pgconn.Pipeline, each func([3]string)) (failed error) {
	for {
		found, err := p.GetResults()
		if err != nil {
			if _, ok := errors.AsType[*pgconn.PgError](err); !ok {
				return cmp.Or(failed, err) // the connection is of no more use; the server has said why, or the next answer fails too
			}
			if failed == nil {
				failed = err
			}
			continue
		}
		switch found := found.(type) {
		case *pgconn.PipelineSync:
			return failed
		case *pgconn.ResultReader:
			for found.NextRow() {
				if v := found.Values(); each != nil && len(v) == 3 {
					each([3]string{string(v[0]), string(v[1]), string(v[2])})
				}
			}
			if _, err := found.Close(); err != nil && failed == nil {
				failed = err
			}
		case nil:
			return errors.Join(failed, errors.New("the server has not answered"))
		}
	}
}

// takeReturned adds the clients whose rows an insertion has returned to Written, and
// notes the others: each must have a row already.
func (n *Insertion) takeReturned(texts []string, returned [][3]string) error {
	there := make(map[string]bool, len(returned))
	asked := n.askedClients(texts)
	for _, row := range returned {
		if changed := n.describeChange(asked, row[0], row[1], row[2]); changed != "" {
			return &RowsDroppedError{changed}
		}
		packed, err := id.Pack(row[1])
		if err != nil {
			return fmt.Errorf("pack client id: %w", err)
		}
		n.Written.Append(packed)
		there[row[1]] = true
	}
	if len(returned) == len(texts) {
		return nil
	}
	for _, text := range texts {
		if !there[text] {
			n.unreturned = append(n.unreturned, text)
		}
	}
	return nil
}

// settleUnreturned checks that clients whose row was not returned have one. A row may
// have been deleted in between: such a client is tried once more.
func (n *Insertion) settleUnreturned(ctx context.Context) error {
	if len(n.unreturned) == 0 {
		return nil
	}
	texts := n.unreturned
	left, err := n.listWithoutRow(ctx, texts)
	if err != nil {
		return err
	}
	n.unreturned = nil
	n.Misses += int64(len(texts) - len(left))
	if err := n.countOwn(ctx, texts, nil); err != nil || len(left) == 0 {
		return err
	}
	if err := n.findRefused(ctx, left); err != nil {
		return err
	}
	if texts, n.unreturned = n.unreturned, nil; len(texts) == 0 {
		return nil
	}
	if left, err = n.listWithoutRow(ctx, texts); err != nil {
		return err
	}
	if len(left) > 0 {
		return n.describeDropped(left)
	}
	n.Misses += int64(len(texts))
	return n.countOwn(ctx, texts, nil)
}

func (n *Insertion) noteLeftOut(text string, refused *pgconn.PgError) {
	if n.LeftOut == nil {
		n.LeftOut = map[string][]string{}
	}
	why := n.describeRefusal(refused)
	n.LeftOut[why] = append(n.LeftOut[why], text)
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

// findScope returns which clients a refusal concerns. It looks each constraint up once.
func (n *Insertion) findScope(ctx context.Context, refused *pgconn.PgError) (refusalScope, error) {
	if refused.ConstraintName == "" || refused.DataTypeName != "" {
		return unknownScope, nil
	}
	key := constraintName{refused.SchemaName, refused.TableName, refused.ConstraintName, refused.Code}
	if scope, ok := n.scopes[key]; ok {
		return scope, nil
	}
	scope, err := n.readScope(ctx, refused)
	if err != nil {
		return unknownScope, err
	}
	if n.scopes == nil {
		n.scopes = map[constraintName]refusalScope{}
	}
	n.scopes[key] = scope
	return scope, nil
}

// constraintName names a constraint and how rows have violated it.
type constraintName struct{ schema, table, constraint, code string }

// readScope looks up the columns of the constraint that refused rows. A constraint over
// none of our columns is not about the rows: a number that a default gave collides.
func (n *Insertion) readScope(ctx context.Context, refused *pgconn.PgError) (refusalScope, error) {
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
