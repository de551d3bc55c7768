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
