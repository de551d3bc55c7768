package cdc

import (
	"strings"
	"testing"
	"time"
)

// Status and log name the transaction for which a snapshot or a verification waits,
// with the statement that ends it: a forgotten prepared transaction, or an open
// one; under a role that may not see the statements of others.
func TestWaitForTransactionsIsNamed(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.own(map[string]string{"max_prepared_transactions": "5"})
	r.setup()
	r.hooks.slowSlot = 100 * time.Millisecond
	prepare := func(gid string) {
		r.Exec(`BEGIN; INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('p', 'r'); PREPARE TRANSACTION '` + gid + `'`)
	}
	prepare(`forgotten''one`)
	r.start()
	r.await("name of the prepared transaction", func(st Status) bool {
		return strings.Contains(st.LastError, "waits for open transactions: prepared transaction 'forgotten'one' of role postgres in database postgres, since 2") &&
			strings.Contains(st.LastError, `ROLLBACK PREPARED 'forgotten''one'`)
	})
	r.Exec(`ROLLBACK PREPARED 'forgotten''one'`)
	r.same("r")

	verify := func(named ...string) {
		t.Helper()
		done := make(chan error, 1)
		go func() {
			_, err := r.m.Verify(t.Context(), false, nil)
			done <- err
		}()
		r.await("stage", func(st Status) bool {
			for _, text := range named {
				if st.Work == nil || !strings.Contains(st.Work.Stage, text) {
					return false
				}
			}
			return true
		})
		r.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'idler'`)
		if r.Int(`SELECT count(*) FROM pg_prepared_xacts`) > 0 {
			r.Exec(`COMMIT PREPARED 'second'`)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	prepare("second")
	verify("prepared transaction 'second'", "ROLLBACK PREPARED 'second'")
	idler, err := r.Pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer idler.Release()
	if _, err := idler.Exec(t.Context(), `SET application_name = idler; BEGIN; INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('i', 'r')`); err != nil {
		t.Fatal(err)
	}
	verify("the transaction of PID", `application_name "idler"`, "role postgres", "pg_terminate_backend(")
}
