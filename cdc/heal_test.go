package cdc

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// slots counts the slots of the mirror's name and of its side streams.
func (r *deployment) slots() int64 {
	r.t.Helper()
	return r.Int(`SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE $1 || '%'`, r.cfg.Slot)
}

// A first snapshot that fails or is stopped leaves no slot: nobody would read it,
// and it would keep WAL.
func TestNoWorthlessSlotIsLeft(t *testing.T) {
	t.Parallel()
	t.Run("stopped in the copy", func(t *testing.T) {
		t.Parallel()
		r := newDeployment(t).setup()
		r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'c' || g, 'r' FROM generate_series(1, 2000) g`)
		copying, goOn := make(chan struct{}, 1), make(chan struct{})
		r.hooks.copied = func() {
			wakeWaiter(copying)
			<-goOn
		}
		r.start()
		await(t, copying)
		if r.slots() != 1 {
			t.Error("there is no slot during the copy: the test shows nothing")
		}
		time.AfterFunc(100*time.Millisecond, func() { close(goOn) })
		if err := r.halt(); err != nil || r.slots() != 0 {
			t.Errorf("Run returned %v, %d slots are left, want none", err, r.slots())
		}
	})
	t.Run("stopped while the slot waits", func(t *testing.T) {
		t.Parallel()
		r := newDeployment(t).setup()
		writer := r.begin(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'r')`)
		r.start()
		envtest.Until(t, patience, func() error {
			if r.slots() == 0 {
				return fmt.Errorf("no slot yet")
			}
			return nil
		})
		if err := r.halt(); err != nil {
			t.Error(err)
		}
		writer()
		envtest.Until(t, patience, func() error {
			if n := r.slots(); n != 0 {
				return fmt.Errorf("%d slots are left, want none", n)
			}
			return nil
		})
	})
	t.Run("halted in the copy", func(t *testing.T) {
		t.Parallel()
		r := newDeployment(t)
		r.cfg.KeyColumns = []string{"id"}
		r.setup()
		r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'c' || g, 'r' FROM generate_series(1, 2000) g`)
		r.inPieces(2)
		r.hooks.locked = func() {
			r.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND state = 'idle in transaction'`, r.m.cfg.ApplicationName)
			r.Exec(`REVOKE SELECT ON subscribers_restaurants FROM role_` + r.Name)
		}
		r.start()
		h := r.awaitHalt()
		if !strings.Contains(h.Hint, `TO "role_`+r.Name+`"`) || r.slots() != 0 {
			t.Errorf("halt is %v, %d slots are left, want none", h, r.slots())
		}
	})
	t.Run("verification given up while its slot waits", func(t *testing.T) {
		t.Parallel()
		r := newDeployment(t).setup().start()
		r.barrier()
		writer := r.begin(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'r')`)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(300*time.Millisecond, cancel)
		if _, err := r.m.Verify(ctx, false, nil); err == nil {
			t.Error("the verification did not wait")
		}
		envtest.Until(t, patience, func() error {
			if n := r.slots(); n != 1 {
				return fmt.Errorf("%d slots, want the mirror's own alone", n)
			}
			return nil
		})
		writer()
	})
}

// begin runs a statement in a transaction that stays open until end.
func (r *deployment) begin(sql string) (end func()) {
	r.t.Helper()
	tx, err := r.Pool.Begin(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := tx.Exec(r.t.Context(), sql); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		if err := tx.Commit(r.t.Context()); err != nil {
			r.t.Error(err)
		}
	}
}

// The mirror waits while a migration in several statements breaks a precondition
// for a moment, and goes on; where the precondition stays broken, it halts.
func TestMigrationInTwoStatementsIsWaitedFor(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, gone, back string }{
		{"primary key remade", `ALTER TABLE subscribers_restaurants DROP CONSTRAINT pk_id`, `ALTER TABLE subscribers_restaurants ADD PRIMARY KEY (id)`},
		{"rights made anew", `REVOKE SELECT ON subscribers_restaurants FROM role_$`, `GRANT SELECT ON subscribers_restaurants TO role_$`},
		{"usage of the schema made anew", `REVOKE USAGE ON SCHEMA public FROM PUBLIC`, `GRANT USAGE ON SCHEMA public TO PUBLIC`},
		{"REPLICATION taken and given back", `ALTER ROLE role_$ NOREPLICATION; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'role_$'`, `ALTER ROLE role_$ REPLICATION`},
		{"CONNECT taken and given back", `REVOKE CONNECT ON DATABASE $ FROM PUBLIC; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'role_$'`, `GRANT CONNECT ON DATABASE $ TO PUBLIC`},
		{"table replaced", `ALTER TABLE subscribers_restaurants RENAME TO old`,
			`CREATE TABLE subscribers_restaurants (LIKE old INCLUDING ALL); INSERT INTO subscribers_restaurants TABLE old; ALTER PUBLICATION dinnerbell ADD TABLE subscribers_restaurants`},
		{"published anew", `ALTER PUBLICATION dinnerbell DROP TABLE subscribers_restaurants`, `ALTER PUBLICATION dinnerbell ADD TABLE subscribers_restaurants`},
	} {
		for _, heals := range []bool{true, false} {
			if !heals && c.name != "primary key remade" { // one shows it
				continue
			}
			t.Run(fmt.Sprintf("%s, heals %v", c.name, heals), func(t *testing.T) {
				t.Parallel()
				r := newDeployment(t).setup()
				if heals {
					r.hooks.healing = 2 * patience
				} else {
					r.hooks.healing = time.Second
				}
				r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'r')`)
				r.start()
				r.same("r")
				r.Exec(strings.ReplaceAll(c.gone, "$", r.Name))
				if !heals {
					if h := r.awaitHalt(); h.Hint == "" {
						t.Errorf("halt is %v, without a hint", h)
					}
					return
				}
				r.await("wait", func(st Status) bool { return st.State == StateWaiting && st.LastError != "" })
				r.Exec(strings.ReplaceAll(c.back, "$", r.Name))
				r.Exec(`INSERT INTO subscribers_restaurants (id, client_id, restaurant_id) VALUES (100, 'b', 'r')`)
				r.same("r")
			})
		}
	}
}

// A slot that must go and may not be dropped, since REPLICATION was revoked, is a
// halt that names the right.
func TestStaleSlotWithoutReplication(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().start()
	r.barrier()
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	r.awaitFree()
	r.Exec(`ALTER PUBLICATION dinnerbell DROP TABLE subscribers_restaurants; ALTER PUBLICATION dinnerbell ADD TABLE subscribers_restaurants;
		ALTER TABLE subscribers_restaurants ALTER client_id TYPE text USING client_id || 'x'`)
	r.Exec(`ALTER ROLE role_` + r.Name + ` NOREPLICATION`)
	r.start()
	if h := r.awaitHalt(); !strings.Contains(h.What, "lacks REPLICATION") || !strings.HasPrefix(h.Hint, `ALTER ROLE "`) {
		t.Errorf("halt is %v, want the missing attribute", h)
	}
}
