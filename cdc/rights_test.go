package cdc

import (
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/cdc/replication"
	"dinnerbell/cdc/source"
	"dinnerbell/internal/precondition"
)

// report makes the checks of a moment.
func (r *deployment) report(at precondition.Moment) precondition.Report {
	r.t.Helper()
	report, err := source.CheckPreconditions(r.t.Context(), r.cfg.Config, at)
	if err != nil {
		r.t.Fatal(err)
	}
	return report
}

// finds checks that the list has exactly these findings of one check.
func (r *deployment) finds(check string, level precondition.Level, texts ...string) {
	r.t.Helper()
	var found []string
	for _, f := range r.report(precondition.AtStart) {
		if f.Name == check && f.Level == level {
			found = append(found, f.String())
		}
	}
	for _, text := range texts {
		if !slices.ContainsFunc(found, func(f string) bool { return strings.Contains(f, text) }) {
			r.t.Errorf("%s has found %q, want %q at level %s", check, found, text, level)
		}
	}
	if len(texts) == 0 && len(found) > 0 {
		r.t.Errorf("%s has found %q, want nothing at level %s", check, found, level)
	}
}

// The list has everything that a server lacks for the mirror, or has beside it that
// will hurt, with the statement that mends it.
func TestServerWithoutRoom(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.own(map[string]string{"max_replication_slots": "2", "max_wal_senders": "9", "max_prepared_transactions": "2"})
	r.setup()
	r.cfg.ForgottenAfter = time.Microsecond
	r.finds("source.room", precondition.Warn)
	r.finds("source.prepared_transactions", precondition.Warn)
	r.Exec(`SELECT pg_create_physical_replication_slot('one')`)
	r.finds("source.room", precondition.Warn, "max_replication_slots")
	r.start()
	r.same() // one is enough
	r.finds("source.room", precondition.Warn, "max_replication_slots")
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	r.awaitFree()
	r.Exec(`SELECT pg_drop_replication_slot($1)`, r.cfg.Slot)
	r.Exec(`SELECT pg_create_physical_replication_slot('two')`)
	r.Exec(`BEGIN; INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('p', 'r'); PREPARE TRANSACTION 'p''q'`)
	r.finds("source.prepared_transactions", precondition.Warn, "ROLLBACK PREPARED 'p''q'")
	r.start()
	if h := r.awaitHalt(); !strings.Contains(h.What, "max_replication_slots") || !strings.Contains(h.Hint, "max_replication_slots = 4") {
		t.Errorf("halt is %v", h)
	}
	r.Exec(`ROLLBACK PREPARED 'p''q'`)
}

func TestRoleWithoutReplication(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	r.finds("source.replication", precondition.Fail)
	r.Exec(`ALTER ROLE role_` + r.Name + ` NOREPLICATION`)
	r.finds("source.replication", precondition.Fail, `ALTER ROLE "role_`+r.Name+`" REPLICATION`)
}

func TestEncodingWithoutCharacters(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.finds("source.encoding", precondition.Warn)
	r.encoded("SQL_ASCII").finds("source.encoding", precondition.Warn, "SQL_ASCII")
}

// A column by which SQL finds other texts equal is warned about.
func TestIDsThatSQLFindsEqual(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.finds("source.id_types", precondition.Warn)
	if _, err := r.Pool.Exec(t.Context(), `CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`); err != nil {
		t.Skip(err)
	}
	r.Exec(`ALTER TABLE subscribers_restaurants ALTER restaurant_id TYPE varchar COLLATE any_case`)
	r.finds("source.id_types", precondition.Warn, "restaurant_id", "TYPE text")
}

// The blanks that pad char(n) are no part of an id, by snapshot and by stream, as
// in SQL.
func TestPaddedIDs(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.Exec(`ALTER TABLE subscribers_restaurants ALTER client_id TYPE char(20), ALTER restaurant_id TYPE char(20)`)
	r.setup()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'r'), ('b ', 'r')`)
	r.start()
	r.same("r")
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('c', 'r'), ('', 's'); UPDATE subscribers_restaurants SET restaurant_id = 's' WHERE client_id = 'a'`)
	r.same("r", "s")
	if v, found := r.verify(false); !v.Sound() {
		t.Errorf("verification found %v: %v", v, found)
	}
	if got := r.clients("r"); !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("clients are %q, want b and c", got)
	}
}

// Where wal_sender_timeout is off, the mirror's walsender has one all the same.
func TestWalsenderHasATimeout(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	for value, want := range map[string]time.Duration{"0": time.Minute, "7s": 7 * time.Second} {
		r.Exec(`ALTER DATABASE ` + r.Name + ` SET wal_sender_timeout = '` + value + `'`)
		repl, err := r.source().DialReplication(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer source.CloseConn(repl)
		for range 2 {
			if got, err := replication.ReadWALSenderTimeout(t.Context(), repl); err != nil || got != want {
				t.Errorf("with %s: %s, %v; want %s", value, got, err, want)
			}
		}
	}
}
