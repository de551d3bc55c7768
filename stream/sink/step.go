package sink

import (
	"context"

	"github.com/jackc/pgx/v5"

	"dinnerbell/stream/record"
)

// StepStatements holds the statements of a step's transaction, prepared on the lane's
// own connection.
type StepStatements struct {
	begin, path, copy, lane, insert, edit, repeat, move, outbox, clean, shape, inTime, commit *Statement
}

// PrepareStep prepares the statements of a step's transaction.
func PrepareStep(ctx context.Context, conn *pgx.Conn, t Tables) (*StepStatements, error) {
	q := newStepStatements(t)
	err := Prepare(ctx, conn, q.begin, q.path, q.copy, q.lane, q.insert, q.edit, q.repeat, q.move, q.outbox, q.clean, q.shape, q.inTime, q.commit)
	return q, err
}

func newStepStatements(t Tables) *StepStatements {
	return &StepStatements{
		begin: &Statement{Name: "begin", SQL: `BEGIN`},
		copy:  &Statement{Name: "copy feedback rows", SQL: `COPY ` + t.Feedback + ` (` + record.ColumnList + `) FROM STDIN (FORMAT binary)`, WritesRows: true},
		path:  &Statement{Name: "set search path", SQL: `SELECT pg_catalog.set_config('search_path', $1::text, true)`},
		lane: &Statement{Name: "move lane", Meanings: OnMiss(ErrTakenOver), SQL: ExpectRows("1", `UPDATE `+t.Lane+` SET seq = $3 + 1, next_offset = greatest(next_offset, $4), notified = notified + $5, expired = expired + $6, dead = dead + $7,
  shipped = $8, notifications_ends = $9
WHERE lane = $1 AND epoch = $2 AND seq = $3`)},
		insert: &Statement{Name: "insert campaigns", Meanings: map[string]error{UniqueViolation: ErrStaleRow}, SQL: insertRowsSQL(t)},
		edit:   &Statement{Name: "edit campaigns", Meanings: OnMiss(ErrStaleRow), SQL: editRowsSQL(t)},
		repeat: &Statement{Name: "repeat campaigns", Meanings: OnMiss(ErrStaleRow), SQL: repeatRowsSQL(t)},
		move:   &Statement{Name: "move campaigns", Meanings: OnMiss(ErrStaleRow), SQL: moveRowsSQL(t)},
		outbox: &Statement{Name: "write outbox", SQL: `INSERT INTO ` + t.Outbox + ` (lane, seq, notifications, payload) VALUES ($1, $2, $3, $4)`},
		clean:  &Statement{Name: "clean outbox", SQL: `DELETE FROM ` + t.Outbox + ` WHERE lane = $1 AND seq <= $2`},
		shape:  &Statement{Name: "compare the feedback table", Meanings: OnMiss(ErrTableAltered), SQL: TreeSQL + ` SELECT 1 / (` + ShapeSQL + ` = $3::text)::int4`},
		inTime: &Statement{Name: "look at the clock", Meanings: OnMiss(ErrCampaignEnded), SQL: `SELECT 1 / (extract(epoch FROM clock_timestamp()) < $1::float8)::int4`},
		commit: &Statement{Name: "commit", SQL: `COMMIT`, WritesRows: true},
	}
}

// AddFeedbackRows adds the beginning of a step's transaction to the pipeline, and
// the step's feedback rows as a binary COPY in CopyData messages; frames is empty
// where no row goes by COPY.
func (q *StepStatements) AddFeedbackRows(p *Pipeline, table *FeedbackTable, frames []byte, rows int) {
	p.AddCommand(q.begin, "BEGIN")
	if table.RunsUserCode {
		p.Add(q.path, table.SearchPath())
	}
	if len(frames) > 0 {
		p.Copy(q.copy, frames, rows)
	}
}

// StepChanges holds all changes of a step's transaction beside the feedback rows.
type StepChanges struct {
	Lane       int32
	Epoch      int64
	Seq        int64 // of the step; the lane row must hold the one before
	NextOffset int64 // 0: does not move

	Notifications, Expired, Refused int64 // added to the lane's counters

	Shipped int64   // K
	Ends    []int64 // of the notifications topic, per partition, as the broker has acknowledged them

	Campaigns *CampaignRows
	Payload   []byte // of the outbox row

	// Notifies reports whether the step writes feedback rows. Postgres must then
	// reach the commit before the Unix second CommitBefore, by its own clock.
	Notifies     bool
	CommitBefore float64
}

// AddChanges adds all other changes of a step and the commit to the pipeline. A
// compare-and-swap that misses fails the transaction; so does the clock, once a
// campaign of the step has ended. The clock is Postgres' own, since the server runs
// the statements whenever it comes to them, even if the daemon no longer waits.
func (q *StepStatements) AddChanges(p *Pipeline, table *FeedbackTable, c *StepChanges) {
	if table.RunsUserCode {
		p.Add(q.path, "pg_catalog")
	}
	p.Add(q.lane, c.Lane, c.Epoch, c.Seq-1, c.NextOffset, c.Notifications, c.Expired, c.Refused, c.Shipped, c.Ends)
	q.addCampaignRows(p, c.Campaigns)
	p.Add(q.outbox, c.Lane, c.Seq, c.Notifications, c.Payload)
	p.Add(q.clean, c.Lane, c.Shipped)
	if c.Notifies {
		p.Add(q.shape, table.OID, table.Name, table.Shape)
		p.Add(q.inTime, c.CommitBefore)
	}
	if table.RunsUserCode { // deferred triggers run at the commit
		p.Add(q.path, table.SearchPath())
	}
	p.AddCommand(q.commit, "COMMIT")
}

func (q *StepStatements) addCampaignRows(p *Pipeline, rows *CampaignRows) {
	if len(rows.inserts) > 0 {
		p.CopySmall(q.insert, copyRows(rows.inserts))
	}
	if rows.edits.len() > 0 {
		p.Add(q.edit, rows.edits.editArgs()...)
	}
	if rows.repeats.len() > 0 {
		p.Add(q.repeat, rows.repeats.repeatArgs()...)
	}
	if rows.moves.len() > 0 {
		p.Add(q.move, rows.moves.moveArgs()...)
	}
}
