package stream

import (
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
)

// stepStatements are what a step's transaction is made of.
type stepStatements struct {
	begin, path, copy, lane, insert, edit, repeat, move, outbox, clean, shape, inTime, commit *sink.Statement
}

func newStepStatements(t sink.Tables) *stepStatements {
	return &stepStatements{
		begin: &sink.Statement{Name: "begin", Sql: `BEGIN`},
		copy:  &sink.Statement{Name: "copy feedback rows", Sql: `COPY ` + t.Feedback + ` (` + record.ColumnList + `) FROM STDIN (FORMAT binary)`, Rows: true},
		path:  &sink.Statement{Name: "set search path", Sql: `SELECT pg_catalog.set_config('search_path', $1::text, true)`},
		lane: &sink.Statement{Name: "move lane", Stands: sink.OnMiss(sink.ErrTakenOver), Sql: sink.ExpectRows("1", `UPDATE `+t.Lane+` SET seq = $3 + 1, next_offset = greatest(next_offset, $4), notified = notified + $5, expired = expired + $6, dead = dead + $7,
  shipped = $8, notifications_ends = $9
WHERE lane = $1 AND epoch = $2 AND seq = $3`)},
		insert: &sink.Statement{Name: "insert campaigns", Stands: map[string]error{sink.UniqueViolation: sink.ErrStaleRow}, Sql: insertRowsSQL(t)},
		edit:   &sink.Statement{Name: "edit campaigns", Stands: sink.OnMiss(sink.ErrStaleRow), Sql: editRowsSQL(t)},
		repeat: &sink.Statement{Name: "repeat campaigns", Stands: sink.OnMiss(sink.ErrStaleRow), Sql: repeatRowsSQL(t)},
		move:   &sink.Statement{Name: "move campaigns", Stands: sink.OnMiss(sink.ErrStaleRow), Sql: moveRowsSQL(t)},
		outbox: &sink.Statement{Name: "write outbox", Sql: `INSERT INTO ` + t.Outbox + ` (lane, seq, notifications, payload) VALUES ($1, $2, $3, $4)`},
		clean:  &sink.Statement{Name: "clean outbox", Sql: `DELETE FROM ` + t.Outbox + ` WHERE lane = $1 AND seq <= $2`},
		shape:  &sink.Statement{Name: "compare the feedback table", Stands: sink.OnMiss(sink.ErrTableAltered), Sql: sink.TreeSQL + ` SELECT 1 / (` + sink.ShapeSQL + ` = $3::text)::int4`},
		inTime: &sink.Statement{Name: "look at the clock", Stands: sink.OnMiss(sink.ErrCampaignEnded), Sql: `SELECT 1 / (extract(epoch FROM clock_timestamp()) < $1::float8)::int4`},
		commit: &sink.Statement{Name: "commit", Sql: `COMMIT`, Rows: true},
	}
}

func (q *stepStatements) all() []*sink.Statement {
	return []*sink.Statement{q.begin, q.path, q.copy, q.lane, q.insert, q.edit, q.repeat, q.move, q.outbox, q.clean, q.shape, q.inTime, q.commit}
}
