package sink

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/pgsession"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/id"
)

// beginTheirs begins a transaction of somebody else, which the end of the test rolls back.
func beginTheirs(t *testing.T, db *envtest.DB) pgx.Tx {
	t.Helper()
	theirs, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = theirs.Rollback(context.Background()) })
	return theirs
}

// A guarded insertion that waits for a lock in vain, or is cancelled, ends there: the
// server begins at most the next chunk, and nobody is left out because of the lock.
func TestGuardedInsertionBehindALock(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ setting, code string }{"lock timeout": {"lock_timeout", LockNotAvailable}, "statement timeout": {"statement_timeout", "57014"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := listClients("0000", 160)
			db, in := newGuardedInsertion(t, `ALTER TABLE subscribers_feedback ADD CONSTRAINT choosy CHECK (client_id NOT LIKE '00000000-%') NOT VALID`,
				pgsession.Setting{Name: c.setting, Value: "1s"})
			theirs := beginTheirs(t, db) // writes a row of each chunk and does not commit
			list := &id.List{}
			for i, text := range all {
				list.Append(packID(t, text))
				if i > 0 && i%chunkRows == 0 {
					if _, err := theirs.Exec(t.Context(), in.Table.InsertSQL(), "r1", "c1", "", "", "", int64(1), int64(2), int64(1), int64(1), []string{text}); err != nil {
						t.Fatal(err)
					}
				}
			}
			pid := in.Conn.PgConn().PID()
			began := time.Now()
			err := pgx.BeginFunc(t.Context(), in.Conn, func(pgx.Tx) error { return in.Write(t.Context(), list) })
			if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != c.code {
				t.Errorf("error %v, want %s", err, c.code)
			}
			envtest.Until(t, patience, func() error {
				if n := db.Int(`SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND state <> 'idle'`, int64(pid)); n > 0 {
					return fmt.Errorf("the server still works on the insertion")
				}
				return nil
			})
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("the insertion has waited for %s, want for one chunk", took)
			}
			if in.LeftOut != nil || in.Refused != "" {
				t.Errorf("left out %v, refused %q", in.LeftOut, in.Refused)
			}
		})
	}
}

// A guarded insertion that meets a deadlock with somebody who waits on waits for few of its
// chunks: it does not hold up the lane and the other one for a deadlock_timeout each.
func TestGuardedInsertionInADeadlock(t *testing.T) {
	t.Parallel()
	all := listClients("0000", 320)
	db, in := newGuardedInsertion(t, `ALTER TABLE subscribers_feedback ADD CONSTRAINT choosy CHECK (client_id NOT LIKE '00000000-%') NOT VALID`)
	theirs := beginTheirs(t, db)
	if _, err := theirs.Exec(t.Context(), `SET LOCAL deadlock_timeout = '1h'`); err != nil {
		t.Fatal(err)
	}
	write := func(text string) error {
		_, err := theirs.Exec(t.Context(), in.Table.InsertSQL(), "r2", "c1", "", "", "", int64(1), int64(2), int64(1), int64(1), []string{text})
		return err
	}
	list := &id.List{}
	for i, text := range all {
		list.Append(packID(t, text))
		if i > chunkRows && i%chunkRows == 0 { // of each chunk but the first two
			if err := write(text); err != nil {
				t.Fatal(err)
			}
		}
	}
	began := time.Now()
	inserted := make(chan error, 1)
	go func() {
		inserted <- pgx.BeginFunc(t.Context(), in.Conn, func(pgx.Tx) error { return in.Write(t.Context(), list) })
	}()
	envtest.Until(t, envtest.Patience, func() error {
		if db.Int(`SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $1`, int64(in.Conn.PgConn().PID())) == 0 {
			return errors.New("the insertion waits for no lock")
		}
		return nil
	})
	if err := write(all[chunkRows]); err != nil { // waits for the insertion
		t.Errorf("the other one: %v", err)
	}
	if err := <-inserted; err == nil || IsLockConflict(err) || !strings.Contains(err.Error(), deadlockDetected) {
		t.Errorf("error %v, want a deadlock after which the connection is of no more use", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the insertion has waited for %s, want for two chunks", took)
	}
}
