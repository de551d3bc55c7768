package stream

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"dinnerbell/internal/precondition"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
)

func sinkOnly(t *testing.T) (*envtest.DB, takeover.Config) {
	t.Helper()
	db := envtest.Database(t)
	return db, takeover.Config{Sink: sink.Config{URL: func() (string, error) { return db.URL, nil }, Schema: "public", Table: "subscribers_feedback", DaemonSchema: "dinnerbell"}}
}

const aRow = `INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
 adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created) VALUES ('', 'c', '', '', '', 1, 2, 1, $1, 1)`

func TestSetupSinkIsSafeToRepeat(t *testing.T) {
	t.Parallel()
	db, cfg := sinkOnly(t)
	db.Exec(aRow, "x") // so that the index is built CONCURRENTLY
	for range 2 {
		if _, err := sink.Setup(t.Context(), cfg.Sink); err != nil {
			t.Fatal(err)
		}
	}
	did, err := sink.Setup(t.Context(), cfg.Sink)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range did {
		if !strings.Contains(line, "there already") {
			t.Errorf("repeated: %s", line)
		}
	}
}

func TestSetupSinkNamesDuplicatesAndMendsAfterwards(t *testing.T) {
	t.Parallel()
	db, cfg := sinkOnly(t)
	db.Exec(aRow, "twice")
	db.Exec(aRow, "once")
	db.Exec(aRow, "twice")
	_, err := sink.Setup(t.Context(), cfg.Sink)
	if err == nil || !strings.Contains(err.Error(), "(c, twice): ids 1, 3") || strings.Contains(err.Error(), "once") {
		t.Fatalf("the error does not name the rows: %v", err)
	}
	// The failed build has left an invalid index behind.
	db.Exec(`DELETE FROM subscribers_feedback WHERE id = 3`)
	if _, err := sink.Setup(t.Context(), cfg.Sink); err != nil {
		t.Fatal(err)
	}
}

// Two deployments may have their feedback tables in one schema.
func TestSetupLeavesOtherTablesAlone(t *testing.T) {
	t.Parallel()
	db, first := sinkOnly(t)
	db.Exec(`CREATE TABLE feedback2 (LIKE subscribers_feedback INCLUDING DEFAULTS)`)
	second := first
	second.Sink.Table, second.Sink.DaemonSchema = "feedback2", "second"
	for _, cfg := range []takeover.Config{first, second} {
		if _, err := sink.Setup(t.Context(), cfg.Sink); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := first.Sink.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.CloseConn(conn)
	for _, cfg := range []takeover.Config{first, second} {
		if name, err := sink.FindUniqueIndex(t.Context(), conn, cfg.Sink.Tables()); err != nil || name == "" {
			t.Errorf("unique index of %s: %q, %v", cfg.Sink.Table, name, err)
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
			db, cfg := sinkOnly(t)
			db.Exec(c.sql)
			conn, err := cfg.Sink.Connect(t.Context(), "test")
			if err != nil {
				t.Fatal(err)
			}
			defer sink.CloseConn(conn)
			name, err := sink.FindUniqueIndex(t.Context(), conn, cfg.Sink.Tables())
			if err != nil || (name != "") != c.want {
				t.Errorf("recognised as %q, %v", name, err)
			}
		})
	}
}

func TestAnotherLayoutIsRefused(t *testing.T) {
	t.Parallel()
	db, cfg := sinkOnly(t)
	if _, err := sink.Setup(t.Context(), cfg.Sink); err != nil {
		t.Fatal(err)
	}
	db.Exec(`UPDATE dinnerbell.layout SET version = 99`)
	if _, err := sink.Setup(t.Context(), cfg.Sink); err == nil || !strings.Contains(err.Error(), "layout 99") {
		t.Errorf("setup on another layout: %v", err)
	}
}

// The statements of setup make, run twice by the owner, what another role needs
// to run the daemon, and one unique index. A right that is missing is named with
// the statement that grants it, before anything begins.
func TestSetupSQLAndGrants(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	role := "daemon_" + w.db.Name
	w.db.Exec(`CREATE ROLE ` + role + ` LOGIN`)
	t.Cleanup(func() {
		for _, sql := range []string{`DROP OWNED BY ` + role, `DROP ROLE ` + role} {
			if _, err := w.db.Pool.Exec(context.Background(), sql); err != nil {
				t.Errorf("%s: %v", sql, err)
			}
		}
	})
	w.db.Exec(`DROP SCHEMA dinnerbell CASCADE; DROP INDEX subscribers_feedback_adv_campaign_id_client_id_idx; REVOKE ALL ON SCHEMA public FROM PUBLIC`)
	owner := w.db.URL
	u, err := url.Parse(owner)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	for range 2 {
		for _, sql := range sink.SetupSQL(w.cfg.Sink) {
			w.db.Exec(sql)
		}
	}
	if n := w.db.Int(`SELECT count(*) FROM pg_index WHERE indrelid = 'subscribers_feedback'::regclass`); n != 2 {
		t.Errorf("%d indexes, want the primary key and one", n)
	}
	w.cfg.Sink.URL = func() (string, error) { return u.String(), nil }
	for i, want := range []string{`GRANT USAGE ON SCHEMA public TO ` + role, `GRANT SELECT ON "public"."subscribers_feedback" TO ` + role, "GRANT USAGE ON SEQUENCE public.subscribers_feedback_id_seq TO " + role,
		"GRANT USAGE ON SCHEMA dinnerbell TO " + role, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA dinnerbell TO " + role} {
		report, _ := takeover.Preconditions(t.Context(), w.cfg.Config, precondition.AtStart) // a fact that the role may not read is unknown
		found := false
		for _, f := range report.At(precondition.Fail) {
			found = found || strings.Contains(f.Fix, want)
		}
		if !found {
			t.Errorf("no finding names %s: %+v", want, report.At(precondition.Fail))
		}
		w.db.Exec(sink.GrantSQL(w.cfg.Sink, role)[i])
	}
	if _, err := sink.Setup(t.Context(), w.cfg.Sink); err != nil {
		t.Errorf("setup under the daemon's role: %v", err)
	}
	w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	w.expect(map[string][]string{"c1": {"a"}})
}

// Rows that stand in the way are named in tables without ids too.
func TestSetupNamesDuplicatesWithoutIDs(t *testing.T) {
	t.Parallel()
	db, cfg := sinkOnly(t)
	db.Exec(`ALTER TABLE subscribers_feedback DROP COLUMN id`)
	db.Exec(aRow, "twice")
	db.Exec(aRow, "twice")
	if _, err := sink.Setup(t.Context(), cfg.Sink); err == nil || !strings.Contains(err.Error(), "(c, twice): ids (0,1), (0,2)") {
		t.Errorf("the error does not name the rows: %v", err)
	}
}
