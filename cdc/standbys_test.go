package cdc

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"dinnerbell/cdc/source"
	"dinnerbell/internal/testenv/envtest"
)

// A server that would take the mirror for a synchronous standby is refused by
// setup, at the start, before a slot is made, and while it streams; its commits do
// not wait for the mirror. Standbys of other names do not matter.
func TestNeverASynchronousStandby(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.own(map[string]string{"synchronous_commit": "local"}) // the test's own commits do not wait
	set := func(names string) {
		r.Exec(`ALTER SYSTEM SET synchronous_standby_names = '` + names + `'`)
		r.Exec(`SELECT pg_reload_conf()`)
		envtest.Until(t, patience, func() error {
			if r.Int(`SELECT (current_setting('synchronous_standby_names') = $1)::int`, names) == 0 {
				return errors.New("the setting is not in force yet")
			}
			return nil
		})
	}
	refused := func(err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "takes dinnerbell's connection") || !strings.Contains(err.Error(), "ALTER SYSTEM SET synchronous_standby_names") {
			t.Errorf("got %v, want the setting named", err)
		}
	}
	r.open()
	ours := strings.ToUpper(New(r.cfg, r.store).cfg.ApplicationName)

	set(`FIRST 1 (elsewhere, *)`)
	_, err := source.Setup(t.Context(), r.owner().Config)
	refused(err)
	set(`elsewhere`)
	r.setup()
	set(`ANY 1 ("` + ours + `")`)
	r.start()
	refused(r.awaitHalt())
	if n := r.Int(`SELECT count(*) FROM pg_replication_slots`); n != 0 {
		t.Errorf("%d slots, want none", n)
	}
	_ = r.halt()

	set(`2 (elsewhere, "` + ours + `-2")`)
	r.start()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'r')`)
	r.same("r")
	set(`*`)
	refused(r.awaitHalt())
	envtest.Until(t, patience, func() error {
		if n := r.Int(`SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'`); n != 0 {
			return fmt.Errorf("%d walsenders, want none", n)
		}
		return nil
	})
	_ = r.halt()
	set(``)
	r.start()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('b', 'r')`)
	r.same("r")
	if st := r.m.Status(); st.Snapshots != 0 {
		t.Errorf("status is %+v, want no snapshot: the slot was kept", st)
	}
}
