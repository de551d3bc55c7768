package main

import (
	"context"
	"strings"
	"testing"

	"dinnerbell/cdc/source"
	"dinnerbell/internal/testenv/envtest"

	"github.com/jackc/pgx/v5"
)

// Everything about role, table and publication that keeps a mirror from working, or
// hurts it later, has its line, and the statement in it mends it.
func TestDoctorMendsTheSource(t *testing.T) {
	t.Parallel()
	p := newPatient(t, "")
	role := "role_" + p.db.Name
	asRole := p.db.RoleURL("source.url")
	p.set("source.url", asRole)
	slot := p.slot()
	p.db.Exec(`ALTER ROLE ` + role + ` NOREPLICATION CONNECTION LIMIT 3`)
	p.db.Exec(`ALTER ROLE ` + role + ` SET wal_sender_timeout = '3s'`)
	p.db.Exec(`ALTER ROLE ` + role + ` SET "DateStyle" = 'SQL, DMY'; ALTER ROLE ` + role + ` SET bytea_output = 'escape'; ALTER ROLE ` + role + ` SET default_transaction_read_only = on`)
	p.db.Exec(`REVOKE ALL ON subscribers_restaurants FROM ` + role)
	p.db.Exec(`CREATE TABLE child () INHERITS (subscribers_restaurants)`)
	p.db.Exec(`ALTER TABLE subscribers_restaurants SET UNLOGGED; ALTER TABLE subscribers_restaurants DROP CONSTRAINT pk_id; ALTER TABLE subscribers_restaurants REPLICA IDENTITY NOTHING; ALTER TABLE subscribers_restaurants ENABLE ROW LEVEL SECURITY`)
	p.db.Exec(`CREATE EXTENSION citext; ALTER TABLE subscribers_restaurants ALTER restaurant_id TYPE public.citext`)
	p.db.Exec(`SELECT pg_create_logical_replication_slot('old_` + slot + `', 'pgoutput')`)
	p.look(ill{"source.settings", "ok", "have no effect: DateStyle, bytea_output, default_transaction_read_only; left as role and database set them: wal_sender_timeout", "-"})
	p.heal(
		ill{"source.replication", "FAIL", "lacks REPLICATION", `ALTER ROLE "` + role + `" REPLICATION`},
		ill{"source.columns", "FAIL", `may not read column "id"`, "GRANT SELECT"},
		ill{"source.persistence", "FAIL", "is unlogged", "SET LOGGED"},
		ill{"source.inheritance", "FAIL", "has inheritance children (public.child)", "NO INHERIT"},
		ill{"source.key", "FAIL", "is not unique and NOT NULL", `ADD PRIMARY KEY ("id")`},
		ill{"source.replica_identity", "FAIL", "has REPLICA IDENTITY NOTHING", "REPLICA IDENTITY DEFAULT"},
		ill{"source.row_security", "FAIL", "row-level security applies", "BYPASSRLS"},
		ill{"source.connections", "FAIL", "of 3 connections others use 0", "CONNECTION LIMIT -1"},
		ill{"source.id_types", "warn", "is citext", "TYPE text"},
		ill{"source.other_slots", "warn", "slot old_" + slot + ": nobody reads it", "SELECT pg_drop_replication_slot('old_" + slot + "')"},
		ill{"source.wal_sender_timeout", "warn", "wal_sender_timeout is 3s", "SET wal_sender_timeout = '60s'"},
	)
	p.look(ill{"source.publication", "FAIL", "does not exist", "dinnerbell setup"}, ill{"source.slot", "ok", "is free", "-"}, ill{"source.walsender", "ok", "direct", "-"})

	// The publication belongs to the owner, who runs setup.
	p.db.Exec(`CREATE PUBLICATION dinnerbell FOR TABLE subscribers_restaurants WHERE (id > 5) WITH (publish = 'insert')`)
	p.look(ill{"source.publication", "FAIL", "does not publish all of insert, update, delete and truncate", "dinnerbell setup"})
	p.set("source.url", p.db.URL)
	if code, out := p.refusesToRun(); code != exitFailed || !strings.Contains(out, "filters the rows") || !strings.Contains(out, "DROP TABLE") {
		t.Errorf("setup on a publication with a filter ends with %d: %s", code, out)
	}
	p.look(ill{"source.publication", "ok", "insert, update, delete and truncate", "-"}) // setup has mended what it can
	p.heal(ill{"source.publication.rows", "FAIL", "filters the rows", "DROP TABLE"})
	p.set("source.url", asRole)
	p.db.Exec(`ALTER ROLE ` + role + ` NOREPLICATION`)
	if code, out := p.refusesToRun(); code != exitFailed || !strings.Contains(out, "lacks REPLICATION") {
		t.Errorf("setup with a role that cannot replicate ends with %d: %s", code, out)
	}
	p.db.Exec(`ALTER ROLE ` + role + ` REPLICATION`)
	p.set("source.url", p.db.URL)
	p.db.Exec(`ALTER PUBLICATION dinnerbell SET TABLE subscribers_restaurants (client_id, restaurant_id)`)
	if code, out := p.refusesToRun(); code != exitFailed || !strings.Contains(out, "leaves out one of the columns id") {
		t.Errorf("setup on a publication with a list of columns ends with %d: %s", code, out)
	}
	p.heal(
		ill{"source.publication.columns", "FAIL", "leaves out one of the columns id", "DROP TABLE"},
		ill{"source.publication.identity", "warn", "does not cover the replica identity", "ADD TABLE"},
	)

	// A new key is the replica identity too: one statement mends both.
	p.db.Exec(`ALTER TABLE subscribers_restaurants DROP CONSTRAINT subscribers_restaurants_pkey`)
	found := p.look(ill{"source.key", "FAIL", "is not unique and NOT NULL", "ADD PRIMARY KEY"}, ill{"source.replica_identity", "FAIL", "is not in the replica identity", "ADD PRIMARY KEY"})
	p.apply(found[0])
	p.look(ill{"source.key", "ok", "", "-"}, ill{"source.replica_identity", "ok", "default", "-"})

	// Another daemon on the slot is found by its lock, also while it reads nothing.
	other, err := pgx.Connect(t.Context(), p.db.URL+"&application_name=dinnerbell@elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close(context.Background()) }()
	if _, err := other.Exec(t.Context(), `SELECT pg_advisory_lock($1)`, source.LockKey(slot)); err != nil {
		t.Fatal(err)
	}
	p.look(ill{"source.slot", "FAIL", `is used by another daemon: PID`, "source.slot"})
	if err := other.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.db.Exec(`SELECT pg_create_physical_replication_slot('` + slot + `')`)
	p.look(ill{"source.slot", "FAIL", "belongs to something else", "set source.slot"}, ill{"source.failover", "unknown", "the slot belongs to something else", "-"})
	p.db.Exec(`SELECT pg_drop_replication_slot('` + slot + `')`)

	// A role that becomes another one.
	p.set("source.url", strings.Replace(p.db.URL, "postgres@", role+"@", 1))
	p.db.Exec(`ALTER ROLE ` + role + ` SET role = 'pg_monitor'; GRANT pg_monitor TO ` + role)
	p.heal(ill{"source.settings", "warn", "becomes another role", "RESET role"})
	p.db.Exec(`REVOKE USAGE ON SCHEMA public FROM PUBLIC`)
	p.heal(ill{"source.schema_usage", "FAIL", "may not use schema public", "GRANT USAGE"})
	p.set("source.table", "public.nothing")
	if code, out := p.refusesToRun(); code != exitFailed || !strings.Contains(out, "does not exist") {
		t.Errorf("setup without the table ends with %d: %s", code, out)
	}
	p.look(ill{"source.table", "FAIL", `table "public"."nothing": does not exist`, ""}, ill{"source.columns", "unknown", "the table was not found", ""})
}

// slot is the name of the deployment's slot.
func (p *patient) slot() string { return strings.TrimSuffix(p.topicIn, ".campaigns") }

// Every setting of the server that a mirror cannot work with, or that hurts later.
func TestDoctorMendsTheServer(t *testing.T) {
	t.Parallel()
	server := envtest.StartPostgres(t, envtest.Dir(t), map[string]string{
		"wal_level": "replica", "max_replication_slots": "1", "max_wal_senders": "1", "max_connections": "10", "superuser_reserved_connections": "2", "max_prepared_transactions": "2",
	})
	p := newPatient(t, "")
	p.db = envtest.DatabaseOn(t, server)
	p.owner = p.db.Pool
	p.set("source.url", p.db.URL)
	p.set("sink.url", p.db.URL)
	for _, setting := range []string{"max_slot_wal_keep_size = '100MB'", "synchronous_standby_names = '*'", "wal_sender_timeout = '3s'"} {
		p.db.Exec(`ALTER SYSTEM SET ` + setting)
	}
	p.db.Exec(`SELECT pg_create_physical_replication_slot('one')`)
	p.db.Exec(`SELECT pg_reload_conf()`)
	restart := []ill{
		{"source.wal_level", "FAIL", `has wal_level "replica"`, "ALTER SYSTEM SET wal_level = logical; -- then restart Postgres"},
		{"source.room", "FAIL", "uses 1 of 1 for others than this daemon (max_replication_slots)", "ALTER SYSTEM SET max_replication_slots = 3; -- then restart"},
		{"source.room", "warn", "uses 0 of 1 for others than this daemon (max_wal_senders)", "ALTER SYSTEM SET max_wal_senders = 3; -- then restart"},
		{"source.connections", "warn", "of 8 connections others use", "ALTER SYSTEM SET max_connections = 28; -- then restart"},
	}
	for _, f := range p.look(restart...) {
		p.apply(f)
		// The test's server has these settings from its command line, which wins.
		name, value, _ := strings.Cut(strings.TrimPrefix(f.Fix, "ALTER SYSTEM SET "), " = ")
		value, _, _ = strings.Cut(value, ";")
		server.Set(name, value)
	}
	p.heal(
		ill{"source.synchronous_standbys", "FAIL", "takes dinnerbell's connection", "ALTER SYSTEM RESET synchronous_standby_names"},
		ill{"sink.standbys", "FAIL", "no standby of synchronous_standby_names = '*' is there", "ALTER SYSTEM RESET synchronous_standby_names"},
		ill{"source.wal_keep_size", "warn", "has max_slot_wal_keep_size 100 MB", "ALTER SYSTEM SET max_slot_wal_keep_size"},
		ill{"source.wal_sender_timeout", "warn", "wal_sender_timeout is 3s", "SET wal_sender_timeout = '60s'"},
	)
	p.db.Pool.Reset()
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.db.Exec(`ALTER SYSTEM RESET max_slot_wal_keep_size`)
	p.db.Exec(`SELECT pg_reload_conf()`)
	if left := p.left(restart); len(left) > 0 {
		t.Errorf("after the restart: %+v", left)
	}
	if p.db.Int(`SELECT current_setting('server_version_num')::int`) < 17_00_00 {
		p.look(ill{"source.failover", "warn", "Postgres before 17 has no failover slots", "upgrade"})
	}
	p.heal(ill{"source.wal_limit", "warn", "max_slot_wal_keep_size is -1", "ALTER SYSTEM SET max_slot_wal_keep_size"})
}
