package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// readySink sets the connection up and marks it as one of the lane's, so that a
// later owner can end it.
func (s *session) readySink(ctx context.Context) error {
	if _, err := s.sink.Exec(ctx, laneSettings, pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("set up sink session: %w", err)
	}
	if _, err := s.sink.Exec(ctx, `SELECT pg_advisory_lock_shared(hashtext($1), $2)`, s.t.lane, s.lane.id); err != nil {
		return fmt.Errorf("mark sink session as lane %d's: %w", s.lane.id, err)
	}
	skew, off, err := clockSkew(ctx, s.sink, time.Now)
	s.ahead = skew + off
	return err
}

// endPredecessors ends the connections of the lane's former owners. One whose
// daemon is frozen between a step's rows and its commit keeps the rows' keys
// locked, and no timeout of the server's ends it: it is in the middle of a
// pipeline, not idle. What it had sent a commit for, is committed or not; the
// epoch is raised after it.
//
// A connection that is younger than ours is left alone: it is of an owner that
// takes the lane over from us.
func (s *session) endPredecessors(ctx context.Context) error {
	var ended int
	err := s.sink.QueryRow(ctx, `
SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid)) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.classid = hashtext($1)::oid AND l.objid = $2::int4::oid AND l.objsubid = 2
  AND a.datname = current_database() AND a.usename = current_user
  AND a.backend_start < (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())`, s.t.lane, s.lane.id).Scan(&ended)
	if err != nil {
		return fmt.Errorf("end the former owner's connections of lane %d: %w", s.lane.id, err)
	}
	if ended > 0 {
		s.cfg.Logger.Info("ended connections of the lane's former owner", "lane", s.lane.id, "connections", ended)
	}
	return nil
}

// stepStatements are what a step's transaction is made of.
type stepStatements struct {
	begin, path, copy, lane, insert, edit, repeat, move, outbox, clean, shape, inTime, commit *statement
}

func newStepStatements(t tables) *stepStatements {
	return &stepStatements{
		begin: &statement{name: "begin", sql: `BEGIN`},
		copy:  &statement{name: "copy feedback rows", sql: `COPY ` + t.feedback + ` (` + copyColumns + `) FROM STDIN (FORMAT binary)`, rows: true},
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
