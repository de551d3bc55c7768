package sink

import (
	"fmt"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// The server ends an idle reading connection. One that has lain idle for long is
// replaced before a statement uses it. One that was used a moment ago fails its
// statement, and the statement after it has a new connection.
func TestReaderWhoseConnectionDied(t *testing.T) {
	t.Parallel()
	for name, long := range map[string]bool{"idle for long": true, "used a moment ago": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, cfg := newSinkDatabase(t)
			r := NewReaders(cfg, "test").Open()
			defer r.Close()
			pid := func() (pid int64, err error) {
				err = r.QueryRow(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid)
				return pid, err
			}
			first, err := pid()
			if err != nil {
				t.Fatal(err)
			}
			if again, err := pid(); err != nil || again != first {
				t.Fatalf("backend %d, %v; want the idle connection's, %d", again, err, first)
			}

			db.Exec(`SELECT pg_terminate_backend($1)`, first)
			envtest.Until(t, envtest.Patience, func() error {
				if n := db.Int(`SELECT count(*) FROM pg_stat_activity WHERE pid = $1`, first); n > 0 {
					return fmt.Errorf("backend %d still runs", first)
				}
				return nil
			})
			r.idle[0].since = time.Now().Add(time.Minute) // as if it was used just now, on the slowest machine too
			if long {
				r.idle[0].since = time.Now().Add(-2 * unchecked)
			}
			if _, err := pid(); (err == nil) != long {
				t.Errorf("the statement after the connection died: %v", err)
			}
			if next, err := pid(); err != nil || next == first {
				t.Errorf("backend %d, %v; want a new connection", next, err)
			}
			if len(r.idle) != 1 || len(r.free) != 0 {
				t.Errorf("%d idle connections, %d in use; want 1 and 0", len(r.idle), len(r.free))
			}
		})
	}
}
