package cdc

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/cdc/source"
	"dinnerbell/internal/precondition"
	"dinnerbell/internal/testenv/envtest"
)

// examined returns what `doctor` finds by a check.
func (r *deployment) examined(check string) precondition.Finding {
	r.t.Helper()
	report := source.Examine(r.t.Context(), r.cfg.Config, source.Surroundings{Limit: 30 * time.Second}).Report
	for _, f := range report {
		if f.Name == check {
			return f
		}
	}
	r.t.Fatalf("no check %s in %+v", check, report)
	return precondition.Finding{}
}

// The doctor tells a failover slot from another one, on servers that have them, and the
// printed command makes one.
func TestDoctorOnFailoverSlots(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	if r.version() < source.FailoverVersion {
		if f := r.examined("source.failover"); f.Level != precondition.OK {
			t.Errorf("without a standby: %+v", f)
		}
		return
	}
	if f := r.examined("source.failover"); f.Level != precondition.OK || f.Found != "run makes a failover slot" {
		t.Errorf("before the first start: %+v", f)
	}
	r.start().barrier()
	if f := r.examined("source.failover"); f.Level != precondition.OK || !strings.HasSuffix(f.Found, "is a failover slot") {
		t.Errorf("on the slot that run has made: %+v", f)
	}
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	envtest.Until(t, patience, func() error {
		_, err := r.Pool.Exec(t.Context(), `SELECT pg_drop_replication_slot($1)`, r.cfg.Slot)
		return err
	})
	r.Exec(`SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, r.cfg.Slot)
	f := r.examined("source.failover")
	if f.Level != precondition.Warn || !strings.Contains(f.Found, "is no failover slot") {
		t.Fatalf("on a slot that stays behind: %+v", f)
	}
	_, statement, _ := strings.Cut(f.Fix, "replication=database'): ")
	conn, err := pgconn.Connect(t.Context(), r.URL+"&replication=database")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(t.Context(), statement).ReadAll(); err != nil {
		t.Errorf("the fix %q: %v", f.Fix, err)
	}
	if f := r.examined("source.failover"); f.Level != precondition.OK {
		t.Errorf("after the fix: %+v", f)
	}
}

// idleTimeoutVersion is the first server that gives up a slot that nobody reads.
const idleTimeoutVersion = 18_00_00

// The doctor warns of a server that gives up an idle slot within a weekend.
func TestDoctorOnIdleSlotTimeout(t *testing.T) {
	t.Parallel()
	r := newDeploymentOn(t, envtest.DatabaseOn(t, envtest.StartPostgres(t, envtest.Dir(t), nil))).setup()
	if f := r.examined("source.idle_slot_timeout"); f.Level != precondition.OK {
		t.Errorf("by default: %+v", f)
	}
	if r.version() < idleTimeoutVersion {
		return
	}
	apply := func(statements string) {
		t.Helper()
		for statement := range strings.SplitSeq(statements, ";") {
			r.Exec(statement)
		}
	}
	apply(`ALTER SYSTEM SET idle_replication_slot_timeout = '1h'; SELECT pg_reload_conf()`)
	var warned precondition.Finding
	envtest.Until(t, patience, func() error { // a reload takes a moment
		if warned = r.examined("source.idle_slot_timeout"); warned.Level != precondition.Warn {
			return errors.New("not yet")
		}
		return nil
	})
	if !strings.Contains(warned.Found, "idle_replication_slot_timeout is 1h0m0s") {
		t.Errorf("found %+v", warned)
	}
	apply(warned.Fix)
	envtest.Until(t, patience, func() error {
		if f := r.examined("source.idle_slot_timeout"); f.Level != precondition.OK {
			return errors.New("not yet")
		}
		return nil
	})
}
