package main

import (
	"strings"
	"testing"
)

// Everything about the feedback table and the role that keeps a lane from working, or
// hurts it later, has its line, and the statement in it mends it.
func TestDoctorMendsTheSink(t *testing.T) {
	t.Parallel()
	p := newPatient(t, "")
	role := "role_" + p.db.Name
	table := `"public"."subscribers_feedback"`
	p.must("setup")
	owner, asRole := p.db.URL, p.db.RoleURL("sink.url")
	p.set("sink.url", asRole)
	p.look(ill{"sink.feedback.rights", "ok", "SELECT and INSERT", "-"})

	p.db.Exec(`DROP INDEX subscribers_feedback_adv_campaign_id_client_id_idx`)
	p.db.Exec(`INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact, adv_campaign_datetime_start, adv_campaign_datetime_end,
		datetime_created, client_id, trigger_datetime_created, feedback) SELECT 'r', 'c', '', '', '', 1, 2, 1, 'twice ' || n % 2, 100 - n, CASE WHEN n = 2 THEN 'good' END FROM generate_series(1, 5) n`)
	p.heal(ill{"sink.feedback.duplicates", "FAIL", "2 pairs of campaign and client have more than one row", "SELECT adv_campaign_id, client_id, count(*)"})
	if kept := p.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE feedback = 'good' OR client_id = 'twice 1' AND trigger_datetime_created = 95`); kept != 2 || p.db.Int(`SELECT count(*) FROM subscribers_feedback`) != 2 {
		t.Errorf("of the pairs the row with feedback and the oldest should stay; they are %d", kept)
	}
	p.set("sink.url", owner) // setup needs its rights
	p.heal(ill{"sink.feedback.unique_index", "FAIL", "it has no valid unique index", "dinnerbell setup"})
	p.set("sink.url", asRole)

	p.db.Exec(`CREATE TABLE clients (id text PRIMARY KEY); INSERT INTO clients SELECT DISTINCT client_id FROM subscribers_feedback`)
	for _, change := range []string{
		`ADD FOREIGN KEY (client_id) REFERENCES clients`, `ADD CONSTRAINT short CHECK (length(adv_campaign_content) < 10)`, `ADD CONSTRAINT one UNIQUE (restaurant_id, client_id)`,
		`ALTER adv_campaign_owner TYPE varchar(40)`, `ADD tenant text`, `ALTER adv_campaign_datetime_end TYPE int4`,
	} {
		p.db.Exec(`ALTER TABLE subscribers_feedback ` + change)
	}
	p.heal(
		ill{"sink.feedback.constraints", "warn", "constraint subscribers_feedback_client_id_fkey: FOREIGN KEY (client_id) REFERENCES public.clients(id)", "DROP CONSTRAINT"},
		ill{"sink.feedback.constraints", "warn", "constraint short: CHECK", "ALTER TABLE " + table + " DROP CONSTRAINT short"},
		ill{"sink.feedback.constraints", "warn", "unique index one on (restaurant_id, client_id)", "DROP CONSTRAINT one"},
		ill{"sink.feedback.lengths", "warn", "column adv_campaign_owner is character varying(40)", "ALTER COLUMN adv_campaign_owner TYPE text"},
		ill{"sink.feedback.columns", "warn", "column adv_campaign_datetime_end is of type integer", "TYPE bigint"},
	)
	p.db.Exec(`SELECT setval('subscribers_feedback_id_seq', 2147483647)`)
	p.heal(ill{"sink.feedback.sequence", "FAIL", "has used 2147483647 of 2147483647 numbers", "TYPE bigint"})
	p.db.Exec(`CREATE UNIQUE INDEX by_client ON subscribers_feedback (client_id)`)
	p.heal(ill{"sink.feedback.constraints", "warn", "unique index by_client on (client_id)", "DROP INDEX public.by_client"})

	p.db.Exec(`DELETE FROM subscribers_feedback`)
	for _, change := range []string{
		`DROP adv_campaign_owner_contact`, `RENAME restaurant_id TO restaurent_id`, `ALTER tenant SET NOT NULL`, `ALTER adv_campaign_datetime_start TYPE text`, //nolint:misspell // on purpose
		`SET UNLOGGED`, `ENABLE ROW LEVEL SECURITY`,
	} {
		p.db.Exec(`ALTER TABLE subscribers_feedback ` + change)
	}
	p.db.Exec(`CREATE RULE lost AS ON INSERT TO subscribers_feedback DO INSTEAD NOTHING`)
	p.db.Exec(`REVOKE ALL ON subscribers_feedback FROM ` + role + `; REVOKE ALL ON SEQUENCE subscribers_feedback_id_seq FROM ` + role + `; REVOKE ALL ON SCHEMA dinnerbell FROM ` + role + `; REVOKE ALL ON dinnerbell.lane FROM ` + role)
	p.db.Exec(`ALTER ROLE ` + role + ` CONNECTION LIMIT 3`)
	p.heal(
		ill{"sink.feedback.columns", "FAIL", "column adv_campaign_owner_contact is missing", "ADD COLUMN adv_campaign_owner_contact text"},
		ill{"sink.feedback.columns", "FAIL", "column restaurant_id is missing", "RENAME COLUMN"},
		ill{"sink.feedback.columns", "FAIL", "adv_campaign_datetime_start is of type text", "TYPE bigint USING"},
		ill{"sink.feedback.required_columns", "FAIL", "column tenant is NOT NULL", "DROP NOT NULL"},
		ill{"sink.feedback.table", "FAIL", "it is not logged", "SET LOGGED"},
		ill{"sink.feedback.table", "FAIL", "row-level security applies", "BYPASSRLS"},
		ill{"sink.feedback.rules", "FAIL", "rule lost", "DROP RULE"},
		ill{"sink.feedback.rights", "FAIL", "lacks a right", "GRANT SELECT ON " + table},
		ill{"sink.feedback.rights", "FAIL", "lacks a right", "GRANT USAGE ON SEQUENCE"},
		ill{"sink.schema", "FAIL", "lacks rights on dinnerbell's own tables", "GRANT USAGE ON SCHEMA dinnerbell"},
		ill{"sink.connections", "warn", "the role may have 3", "CONNECTION LIMIT -1; -- or lower sink.max_connections"},
	)
	p.db.Exec(`ALTER TABLE subscribers_feedback ALTER id DROP DEFAULT`)
	p.heal(ill{"sink.feedback.required_columns", "FAIL", "column id is NOT NULL, has no default", `ALTER COLUMN "id" ADD GENERATED BY DEFAULT AS IDENTITY`})
	p.look(ill{"sink.feedback.sequence", "ok", "numbers used", "-"})
	p.db.Exec(`UPDATE dinnerbell.layout SET version = version - 1`)
	p.look(ill{"sink.layout", "FAIL", "and this dinnerbell works on layout", "dinnerbell setup"})
	p.db.Exec(`UPDATE dinnerbell.layout SET version = 99`)
	p.look(ill{"sink.layout", "FAIL", "layout 99, which a later dinnerbell has made", "a later one"})
	p.db.Exec(`DROP SCHEMA dinnerbell CASCADE`)
	p.set("sink.url", owner)
	p.heal(ill{"sink.layout", "FAIL", "they are missing", "dinnerbell setup"})
	p.set("sink.table", "public.nothing")
	p.look(ill{"sink.feedback.columns", "unknown", "the feedback table was not found", "-"}, ill{"sink.feedback.unique_index", "unknown", "the feedback table was not found", "-"},
		ill{"sink.feedback.duplicates", "unknown", "the feedback table was not found", "-"}, ill{"sink.feedback.constraints", "unknown", "the feedback table was not found", "-"})
	p.heal(ill{"sink.feedback.exists", "FAIL", "it does not exist", `CREATE TABLE "public"."nothing"`})
}

// Whatever somebody has done to the daemon's own tables has its line, and the statement
// in it mends it; run refuses what the doctor calls FAIL.
func TestDoctorMendsTheDaemonsTables(t *testing.T) {
	t.Parallel()
	p := newPatient(t, "")
	role := "role_" + p.db.Name
	p.must("setup")
	p.look(ill{"sink.tables", "ok", "as setup makes them", "-"})
	asRole := p.db.RoleURL("sink.url")
	p.set("sink.url", asRole)
	p.db.Exec(`CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`)
	for _, change := range []string{
		`ALTER TABLE dinnerbell.lane DROP COLUMN shipped`,
		`ALTER TABLE dinnerbell.lane ALTER seq DROP DEFAULT`,
		`ALTER TABLE dinnerbell.lane ENABLE ROW LEVEL SECURITY`,
		`ALTER TABLE dinnerbell.lane ADD tenant text NOT NULL`,
		`ALTER TABLE dinnerbell.lane ADD CONSTRAINT few CHECK (lane < 10)`,
		`ALTER TABLE dinnerbell.campaign DROP COLUMN fingerprint`, // of an empty table
		`ALTER TABLE dinnerbell.campaign DROP COLUMN finished_at`,
		`ALTER TABLE dinnerbell.campaign DROP CONSTRAINT campaign_pkey`,
		`ALTER TABLE dinnerbell.campaign ALTER notified DROP DEFAULT, ALTER notified TYPE text, ALTER notified SET DEFAULT 'none'`,
		`ALTER TABLE dinnerbell.campaign ALTER audience SET NOT NULL`,
		`ALTER TABLE dinnerbell.campaign ALTER version DROP NOT NULL`,
		`DROP INDEX dinnerbell.campaign_pending`,
		`CREATE UNIQUE INDEX one_each ON dinnerbell.campaign (restaurant_id)`,
		`ALTER TABLE dinnerbell.outbox SET UNLOGGED`,
		`CREATE RULE lost AS ON INSERT TO dinnerbell.outbox DO INSTEAD NOTHING`,
		`CREATE TRIGGER dropping BEFORE INSERT ON dinnerbell.outbox FOR EACH ROW EXECUTE FUNCTION f()`,
		`CREATE TRIGGER auditing AFTER INSERT ON dinnerbell.campaign FOR EACH ROW EXECUTE FUNCTION f()`,
		`GRANT USAGE ON SCHEMA dinnerbell TO ` + role + `; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA dinnerbell TO ` + role,
	} {
		p.db.Exec(change)
	}
	ills := []ill{
		{"sink.tables", "FAIL", "column shipped is missing", "ADD COLUMN shipped bigint NOT NULL DEFAULT 0"},
		{"sink.tables", "FAIL", `column seq has the default "", not "0"`, "ALTER COLUMN seq SET DEFAULT 0"},
		{"sink.tables", "FAIL", "row-level security applies", "DISABLE ROW LEVEL SECURITY"},
		{"sink.tables", "FAIL", "column tenant is NOT NULL", `ALTER COLUMN "tenant" DROP NOT NULL`},
		{"sink.tables", "warn", "it has the constraint few: CHECK", "DROP CONSTRAINT few"},
		{"sink.tables", "FAIL", "column fingerprint is missing", "ADD COLUMN fingerprint bytea NOT NULL"},
		{"sink.tables", "FAIL", "column finished_at is missing", "ADD COLUMN finished_at timestamp with time zone"},
		{"sink.tables", "FAIL", "it has no primary key (adv_campaign_id, restaurant_id)", "ADD PRIMARY KEY (adv_campaign_id, restaurant_id)"},
		{"sink.tables", "FAIL", "column notified is of type text, not bigint", "TYPE bigint USING"},
		{"sink.tables", "FAIL", "column audience is NOT NULL", "ALTER COLUMN audience DROP NOT NULL"},
		{"sink.tables", "warn", "column version may be NULL", "ALTER COLUMN version SET NOT NULL"},
		{"sink.tables", "warn", "it has no valid index campaign_pending", "dinnerbell setup"},
		{"sink.tables", "warn", "it has the unique index one_each", `DROP INDEX "dinnerbell".one_each`},
		{"sink.tables", "FAIL", "it is not logged", "SET LOGGED"},
		{"sink.tables", "FAIL", "it has the rule lost", "DISABLE RULE lost"},
		{"sink.tables", "FAIL", "its trigger dropping runs BEFORE and FOR EACH ROW", "DISABLE TRIGGER dropping"},
		{"sink.tables", "warn", "it has the trigger auditing", "DISABLE TRIGGER auditing"},
	}
	if code, out := p.refusesToRun(); code != exitFailed || !strings.Contains(out, `table "dinnerbell".lane`) {
		t.Errorf("setup, which makes the checks of run, ends with %d: %s", code, out)
	}
	for _, f := range p.look(ills...) {
		if f.Fix != "dinnerbell setup" { // setup needs tables that are right, and comes last
			p.apply(f)
		}
	}
	p.set("sink.url", p.db.URL)
	p.heal(ill{"sink.tables", "warn", "it has no valid index campaign_pending", "dinnerbell setup"})
	p.set("sink.url", asRole)
	if left := p.left(ills); len(left) > 0 {
		t.Errorf("still there: %+v", left)
	}

	// What an empty column cannot stand in for comes from a backup.
	p.db.Exec(`INSERT INTO dinnerbell.lane (lane, seq, next_offset, cluster_id, campaigns_topic_id, notifications_topic_id, progress_topic_id) VALUES (0, 5, 1, '', '', '', '')`)
	p.db.Exec(`ALTER TABLE dinnerbell.lane DROP COLUMN next_offset`)
	p.look(ill{"sink.tables", "FAIL", "column next_offset is missing", "back from a backup"})
	p.db.Exec(`ALTER TABLE dinnerbell.lane ADD next_offset int8 NOT NULL DEFAULT 1; ALTER TABLE dinnerbell.lane ALTER next_offset DROP DEFAULT`)
}

// setup does not make an empty table in the place of one whose rows are lost, and says
// how to go on; where nothing is lost it makes the table, and names it alone.
func TestSetupMakesNoEmptyTableOfALostOne(t *testing.T) {
	t.Parallel()
	p := newPatient(t, "")
	p.must("setup")
	p.db.Exec(`DROP TABLE dinnerbell.outbox, dinnerbell.layout`)
	p.look(ill{"sink.tables", "unknown", "some of the tables are missing", "-"}, ill{"sink.layout", "FAIL", "they are missing", "dinnerbell setup"})
	if out := p.must("setup"); !strings.Contains(out, "created outbox, layout\n") {
		t.Errorf("setup says %s", out)
	}
	p.db.Exec(`DELETE FROM dinnerbell.layout`)
	p.heal(ill{"sink.layout", "FAIL", "has lost the number", "dinnerbell setup"})
	p.look(ill{"sink.tables", "ok", "as setup makes them", "-"})

	lane := `INSERT INTO dinnerbell.lane (lane, seq, next_offset, cluster_id, campaigns_topic_id, notifications_topic_id, progress_topic_id) VALUES (0, 5, 1, '', '', '', '')`
	campaign := `INSERT INTO dinnerbell.campaign (adv_campaign_id, restaurant_id, lane, version, msg_lane, msg_offset, msg_time, fingerprint, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
 adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, state, cursor, contested) VALUES ('c', 'r', 0, 1, 0, 0, 0, '', '', '', '', 0, 1, 0, 'pending', '', false)`
	for table, want := range map[string]string{"outbox": "notifications that were decided and not shipped would be forgotten", "campaign": "campaigns that are scheduled or under way would be forgotten", "lane": "the lanes' positions would be forgotten"} {
		p.db.Exec(`DELETE FROM dinnerbell.lane; DELETE FROM dinnerbell.campaign`)
		p.db.Exec(lane)
		p.db.Exec(campaign)
		p.db.Exec(`DROP TABLE dinnerbell.` + table)
		if code, out := p.refusesToRun(); code != exitFailed || !strings.Contains(out, want) || !strings.Contains(out, "back from a backup") {
			t.Errorf("without %s setup ends with %d: %s", table, code, out)
		}
		if n := p.db.Int(`SELECT count(*) FROM pg_tables WHERE schemaname = 'dinnerbell' AND tablename = $1`, table); n != 0 {
			t.Errorf("setup has made %s", table)
		}
		found := p.look(ill{"sink.layout", "FAIL", want, "back from a backup"})
		for _, f := range found { // the statement in the way out
			_, rest, _ := strings.Cut(f.Fix, "create it empty (")
			statements, _, _ := strings.Cut(rest, ") and start")
			statements, _, _ = strings.Cut(statements, "), run")
			p.db.Exec(statements)
		}
		p.must("setup")
		p.look(ill{"sink.tables", "ok", "as setup makes them", "-"})
	}
}

// refusesToRun runs setup, which makes every check of run at its end.
func (p *patient) refusesToRun() (code int, messages string) {
	p.t.Helper()
	var stderr syncBuffer
	code, _ = p.run(p.t.Context(), &stderr, "setup")
	return code, stderr.String()
}
