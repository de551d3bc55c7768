package cdc

import (
	"strings"
	"testing"

	"dinnerbell/cdc/source"
	"dinnerbell/internal/precondition"
)

// A publication with a list of columns serves, if it has those that are needed,
// and setup leaves it as it is. Where the list does not cover the replica identity
// the table's writers fail, not the mirror: that is warned of, with the statement
// that mends it.
func TestPublicationWithColumnList(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	if r.version() < source.SchemasVersion {
		t.Skip("this server cannot do that")
	}
	r.Exec(`ALTER TABLE subscribers_restaurants ADD note text;
		CREATE PUBLICATION dinnerbell FOR TABLE subscribers_restaurants (id, client_id, restaurant_id);
		INSERT INTO subscribers_restaurants (id, client_id, restaurant_id, note) VALUES (1, 'a', 'r', 'n')`)
	if did, err := source.Setup(t.Context(), r.owner().Config); err != nil || len(did) != 0 {
		t.Errorf("setup did %q, %v; want nothing", did, err)
	}
	r.start()
	r.same("r")
	r.Exec(`UPDATE subscribers_restaurants SET note = 'm', client_id = 'b'; UPDATE subscribers_restaurants SET id = 2`)
	r.same("r")
	fix := func() (fix string) {
		t.Helper()
		report, err := source.CheckPreconditions(t.Context(), r.cfg.Config, precondition.Always)
		if violation, ok := report.Violation(); err != nil || ok {
			t.Fatalf("violated is %+v, %v", violation, err)
		}
		for _, f := range report.At(precondition.Warn) {
			if strings.Contains(f.Found, "does not cover the replica identity of public.subscribers_restaurants") {
				fix = f.Fix
			}
		}
		return fix
	}
	if got := fix(); got != "" {
		t.Errorf("warned of a list that covers the identity: %s", got)
	}
	r.Exec(`ALTER TABLE subscribers_restaurants REPLICA IDENTITY FULL`)
	mend := fix()
	if mend == "" {
		t.Fatal("no warning of a list that does not cover the identity")
	}
	r.Exec(mend)
	r.Exec(`UPDATE subscribers_restaurants SET client_id = 'c'`)
	r.same("r")
}
