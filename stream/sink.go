package stream

import (
	"dinnerbell/stream/record"
)

// stepStatements are what a step's transaction is made of.
type stepStatements struct {
	begin, path, copy, lane, insert, edit, repeat, move, outbox, clean, shape, inTime, commit *statement
}

func newStepStatements(t tables) *stepStatements {
	return &stepStatements{
		begin: &statement{name: "begin", sql: `BEGIN`},
		copy:  &statement{name: "copy feedback rows", sql: `COPY ` + t.feedback + ` (` + record.ColumnList + `) FROM STDIN (FORMAT binary)`, rows: true},
		path:  &statement{name: "set search path", sql: `SELECT pg_catalog.set_config('search_path', $1::text, true)`},
		lane: &statement{name: "move lane", stands: missed(errTakenOver), sql: expecting("1", `UPDATE `+t.lane+` SET seq = $3 + 1, next_offset = greatest(next_offset, $4), notified = notified + $5, expired = expired + $6, dead = dead + $7,
  shipped = $8, notifications_ends = $9
WHERE lane = $1 AND epoch = $2 AND seq = $3`)},
		insert: &statement{name: "insert campaigns", stands: map[string]error{uniqueViolation: errStale}, sql: insertRowsSQL(t)},
		edit:   &statement{name: "edit campaigns", stands: missed(errStale), sql: editRowsSQL(t)},
		repeat: &statement{name: "repeat campaigns", stands: missed(errStale), sql: repeatRowsSQL(t)},
		move:   &statement{name: "move campaigns", stands: missed(errStale), sql: moveRowsSQL(t)},
		outbox: &statement{name: "write outbox", sql: `INSERT INTO ` + t.outbox + ` (lane, seq, notifications, payload) VALUES ($1, $2, $3, $4)`},
		clean:  &statement{name: "clean outbox", sql: `DELETE FROM ` + t.outbox + ` WHERE lane = $1 AND seq <= $2`},
		shape:  &statement{name: "compare the feedback table", stands: missed(errAltered), sql: treeSQL + ` SELECT 1 / (` + shape + ` = $3::text)::int4`},
		inTime: &statement{name: "look at the clock", stands: missed(errEnded), sql: `SELECT 1 / (extract(epoch FROM clock_timestamp()) < $1::float8)::int4`},
		commit: &statement{name: "commit", sql: `COMMIT`, rows: true},
	}
}

func (q *stepStatements) all() []*statement {
	return []*statement{q.begin, q.path, q.copy, q.lane, q.insert, q.edit, q.repeat, q.move, q.outbox, q.clean, q.shape, q.inTime, q.commit}
}
