package sink

import (
	"context"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// newSinkDatabase makes a database with the contract's feedback table alone.
func newSinkDatabase(t *testing.T) (*envtest.DB, Config) {
	t.Helper()
	db := envtest.Database(t)
	return db, Config{URL: func() (string, error) { return db.URL, nil }, Schema: "public", Table: "subscribers_feedback", DaemonSchema: "dinnerbell"}
}

const insertRow = `INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
 adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created) VALUES ('', 'c', '', '', '', 1, 2, 1, $1, 1)`

func TestSetupSinkIsSafeToRepeat(t *testing.T) {
	t.Parallel()
	db, cfg := newSinkDatabase(t)
	db.Exec(insertRow, "x") // so that the index is built CONCURRENTLY
	for range 2 {
		if _, err := Setup(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	did, err := Setup(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range did {
		if !strings.Contains(line, "there already") {
			t.Errorf("repeated: %s", line)
		}
	}
}

// A role that may not create the tables or the index is told who can.
func TestSetupNamesWhoHasTheRights(t *testing.T) {
	t.Parallel()
	db, owner := newSinkDatabase(t)
	role := "daemon_" + db.Name
	db.Exec(`CREATE ROLE ` + role + ` LOGIN`)
	t.Cleanup(func() {
		for _, sql := range []string{`DROP OWNED BY ` + role, `DROP ROLE ` + role} {
			if _, err := db.Pool.Exec(context.Background(), sql); err != nil {
				t.Errorf("%s: %v", sql, err)
			}
		}
	})
	limited := owner
	limited.URL = func() (string, error) { return strings.Replace(db.URL, "postgres@", role+"@", 1), nil }
	check := func(what string) {
		t.Helper()
		_, err := Setup(t.Context(), limited)
		if err == nil || !strings.Contains(err.Error(), what) || strings.Count(err.Error(), "or let somebody with these rights run what `dinnerbell setup --print-sql` prints") != 1 {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("create tables of schema")
	for _, sql := range SetupSQL(owner)[:len(SetupSQL(owner))-1] { // all but the unique index
		db.Exec(sql)
	}
	for _, sql := range GrantSQL(owner, role) {
		db.Exec(sql)
	}
	check("create unique index on")
	if _, err := Setup(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
	if did, err := Setup(t.Context(), limited); err != nil {
		t.Errorf("with all in place: %v, %v", did, err)
	}
}

func TestSetupSinkNamesDuplicatesAndMendsAfterwards(t *testing.T) {
	t.Parallel()
	db, cfg := newSinkDatabase(t)
	db.Exec(insertRow, "twice")
	db.Exec(insertRow, "once")
	db.Exec(insertRow, "twice")
	_, err := Setup(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "(c, twice): ids 1, 3") || strings.Contains(err.Error(), "once") {
		t.Fatalf("the error does not name the rows: %v", err)
	}
	// The failed build has left an invalid index behind.
	db.Exec(`DELETE FROM subscribers_feedback WHERE id = 3`)
	if _, err := Setup(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
}

// Two deployments may have their feedback tables in one schema.
func TestSetupLeavesOtherTablesAlone(t *testing.T) {
	t.Parallel()
	db, first := newSinkDatabase(t)
	db.Exec(`CREATE TABLE feedback2 (LIKE subscribers_feedback INCLUDING DEFAULTS)`)
	second := first
	second.Table, second.DaemonSchema = "feedback2", "second"
	for _, cfg := range []Config{first, second} {
		if _, err := Setup(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := first.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer CloseConn(conn)
	for _, cfg := range []Config{first, second} {
		if name, err := FindUniqueIndex(t.Context(), conn, cfg.Tables()); err != nil || name == "" {
			t.Errorf("unique index of %s: %q, %v", cfg.Table, name, err)
		}
	}
}

// Any valid unique index over the two columns serves; a partial one or one over
// other columns does not.
func TestUniqueIndexIsRecognised(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		sql  string
		want bool
	}{
		{`CREATE UNIQUE INDEX i ON subscribers_feedback (client_id, adv_campaign_id)`, true},
		{`CREATE UNIQUE INDEX i ON subscribers_feedback (adv_campaign_id, client_id) INCLUDE (feedback)`, true},
		{`CREATE UNIQUE INDEX i ON subscribers_feedback (adv_campaign_id, client_id) WHERE feedback IS NULL`, false},
		{`CREATE UNIQUE INDEX i ON subscribers_feedback (adv_campaign_id, client_id, restaurant_id)`, false},
		{`CREATE UNIQUE INDEX i ON subscribers_feedback (adv_campaign_id, lower(client_id))`, false},
		{`CREATE INDEX i ON subscribers_feedback (adv_campaign_id, client_id)`, false},
	} {
		t.Run(c.sql, func(t *testing.T) {
			t.Parallel()
			db, cfg := newSinkDatabase(t)
			db.Exec(c.sql)
			conn, err := cfg.Connect(t.Context(), "test")
			if err != nil {
				t.Fatal(err)
			}
			defer CloseConn(conn)
			name, err := FindUniqueIndex(t.Context(), conn, cfg.Tables())
			if err != nil || (name != "") != c.want {
				t.Errorf("recognised as %q, %v", name, err)
			}
		})
	}
}

func TestAnotherLayoutIsRefused(t *testing.T) {
	t.Parallel()
	db, cfg := newSinkDatabase(t)
	if _, err := Setup(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	db.Exec(`UPDATE dinnerbell.layout SET version = 99`)
	if _, err := Setup(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "layout 99") {
		t.Errorf("setup on another layout: %v", err)
	}
}

// Setup names duplicate rows in tables without ids too.
func TestSetupNamesDuplicatesWithoutIDs(t *testing.T) {
	t.Parallel()
	db, cfg := newSinkDatabase(t)
	db.Exec(`ALTER TABLE subscribers_feedback DROP COLUMN id`)
	db.Exec(insertRow, "twice")
	db.Exec(insertRow, "twice")
	if _, err := Setup(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "(c, twice): ids (0,1), (0,2)") {
		t.Errorf("the error does not name the rows: %v", err)
	}
}
