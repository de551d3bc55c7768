package main

import "testing"

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
	p.db.Exec(`UPDATE dinnerbell.layout SET version = version - 1`)
	p.look(ill{"sink.layout", "FAIL", "and this dinnerbell works on layout", "dinnerbell setup"})
	p.db.Exec(`UPDATE dinnerbell.layout SET version = 99`)
	p.look(ill{"sink.layout", "FAIL", "layout 99, which a later dinnerbell has made", "a later one"})
	p.db.Exec(`DROP SCHEMA dinnerbell CASCADE`)
	p.set("sink.url", owner)
	p.heal(ill{"sink.layout", "FAIL", "they are missing", "dinnerbell setup"})
	p.set("sink.table", "public.nothing")
	p.heal(ill{"sink.feedback.exists", "FAIL", "it does not exist", `CREATE TABLE "public"."nothing"`})
}
