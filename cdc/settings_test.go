package cdc

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"dinnerbell/cdc/source"
	"dinnerbell/internal/pgsession"
	"dinnerbell/internal/postgres"
)

// unfit has a value for each pinned setting that would do harm.
var unfit = map[string]string{
	"TimeZone": "Asia/Tokyo", "DateStyle": "SQL, DMY", "IntervalStyle": "iso_8601", "bytea_output": "escape",
	"extra_float_digits": "-3", "lc_monetary": "POSIX", "search_path": `""`, "quote_all_identifiers": "on",
	"client_encoding": "LATIN1", "standard_conforming_strings": "off", "default_transaction_read_only": "on",
	"default_transaction_isolation": "serializable", "default_transaction_deferrable": "on",
	"statement_timeout": "2s", "lock_timeout": "2s", "idle_in_transaction_session_timeout": "2s",
	"idle_session_timeout": "2s", "transaction_timeout": "2s", "client_min_messages": "debug1", "exit_on_error": "on",
	"jit": "on", "enable_seqscan": "off", "enable_tidscan": "off", "synchronous_commit": "remote_apply", "row_security": "on",
	"tcp_keepalives_idle": "7000", "tcp_keepalives_interval": "7000", "tcp_keepalives_count": "99", "tcp_user_timeout": "1000",
}

// Each pinned setting has its value on connections of both kinds, whatever the
// database, the role, the options and parameters of the URL in any spelling, and
// a login trigger say.
func TestSettingsArePinned(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	if r.version() >= 17_00_00 {
		r.Exec(`CREATE FUNCTION at_login() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN SET TimeZone = 'Asia/Tokyo'; SET statement_timeout = '2s'; END $$;
			CREATE EVENT TRIGGER at_login ON login EXECUTE FUNCTION at_login(); ALTER EVENT TRIGGER at_login ENABLE ALWAYS`)
	}
	var options []string
	parameters := url.Values{}
	for _, s := range source.SessionSettings {
		value, ok := unfit[s.Name]
		if !ok {
			t.Fatalf("setting %s is pinned and has no unfit value here", s.Name)
		}
		if r.Int(`SELECT count(*) FROM pg_settings WHERE lower(name) = lower($1)`, s.Name) == 0 {
			continue
		}
		if s.Name == "search_path" {
			r.Exec(fmt.Sprintf(`ALTER DATABASE %s SET search_path = ''`, r.Name))
		} else {
			r.Exec(fmt.Sprintf(`ALTER DATABASE %s SET %s = '%s'`, r.Name, s.Name, value))
		}
		r.Exec(fmt.Sprintf(`ALTER ROLE role_%s IN DATABASE %[1]s SET %s = '%s'`, r.Name, s.Name, strings.Trim(value, `"`)))
		options = append(options, "-c "+s.Name+"="+strings.ReplaceAll(value, " ", `\ `))
		for _, spelling := range []string{strings.ToLower(s.Name), strings.ToUpper(s.Name)} {
			if postgres.Check(r.role+"&"+spelling+"=x") == nil {
				parameters.Set(spelling, value)
			}
		}
	}
	parameters.Set("options", strings.Join(options, " "))
	for _, extra := range []string{"", "&" + strings.ReplaceAll(parameters.Encode(), "+", "%20")} {
		cfg := r.cfg.Config
		cfg.URL = func() (string, error) { return r.role + extra, nil }
		db, err := source.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		sql, err := db.DialSQL(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer source.CloseConn(sql.PgConn())
		repl, err := db.DialReplication(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer source.CloseConn(repl)
		if _, err := sql.Exec(t.Context(), `SET statement_timeout = 0`); err != nil { // the trigger's would be in force for itself
			t.Fatal(err)
		}
		for kind, settings := range map[string][]pgsession.Setting{"session": source.SessionSettings, "walsender": source.WalsenderSettings} {
			conn := sql.PgConn()
			if kind == "walsender" {
				conn = repl
			}
			for _, s := range settings {
				results, err := conn.Exec(t.Context(), `SELECT setting FROM pg_catalog.pg_settings WHERE lower(name) = lower('`+s.Name+`')`).ReadAll()
				if err != nil {
					t.Fatal(err)
				}
				for _, row := range results[0].Rows {
					if got := string(row[0]); got != s.Value {
						t.Errorf("%s (URL with %d bytes more): %s is %q, want %q", kind, len(extra), s.Name, got, s.Value)
					}
				}
			}
		}
	}
}

// The text of a key does not depend on the settings that a database gives its
// sessions: rows that were stored before they changed are found by the DELETEs
// and UPDATEs after it, and no snapshot is needed for that.
func TestKeysReadAlikeUnderOtherSettings(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ typ, value, set string }{
		{"timestamptz", "'2026-01-01 00:00:00+00'", `timezone = 'Asia/Tokyo'`},
		{"date", "'2026-01-02'", `datestyle = 'German'`},
		{"tsrange", "'[2026-01-02, 2026-02-03)'", `datestyle = 'SQL, DMY'`},
		{"timestamptz[]", "'{2026-01-01 00:00:00+00}'", `timezone = 'America/New_York'`},
		{"interval", "'1 day 02:03:04'", `intervalstyle = 'iso_8601'`},
		{"bytea", `'\x00ff41'`, `bytea_output = 'escape'`},
		{"regclass", `'pg_class'`, `quote_all_identifiers = on`},
		{"regclass", `'pg_class'`, `search_path = 'public'`},
	} {
		t.Run(c.typ, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t)
			r.cfg.KeyColumns = []string{"client_id", "restaurant_id", "since"}
			r.Exec(`ALTER TABLE subscribers_restaurants DROP id, ADD since ` + c.typ + `, ADD PRIMARY KEY (client_id, restaurant_id, since)`)
			r.setup()
			r.Exec(`INSERT INTO subscribers_restaurants VALUES ('a', 'r', ` + c.value + `), ('b', 'r', ` + c.value + `), ('c', 'r', ` + c.value + `)`)
			r.start()
			r.same("r")
			if err := r.halt(); err != nil {
				t.Fatal(err)
			}
			r.Exec(`ALTER DATABASE ` + r.Name + ` SET ` + c.set)
			r.start()
			r.Exec(`DELETE FROM subscribers_restaurants WHERE client_id = 'a'; UPDATE subscribers_restaurants SET restaurant_id = 's' WHERE client_id = 'b'`)
			r.same("r", "s")
			if v, found := r.verify(false); !v.Sound() {
				t.Errorf("verification found %v: %v", v, found)
			}
			if st := r.m.Status(); st.Snapshots != 0 {
				t.Errorf("%d snapshots, want none: the keys read as before", st.Snapshots)
			}
		})
	}
}

// A state that was written under other pins holds other keys: it is rebuilt, once.
func TestOtherPinsLeadToOneRebuild(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().start()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'r')`)
	r.same("r")
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	src, _ := r.store.Source()
	src.Catalog = strings.Replace(src.Catalog, "text "+pgsession.TextVersion()+";", "", 1)
	if err := r.store.Follow(src); err != nil {
		t.Fatal(err)
	}
	for _, snapshots := range []int64{1, 0} {
		r.start()
		r.same("r")
		if got := r.m.Status().Snapshots; got != snapshots {
			t.Errorf("%d snapshots, want %d", got, snapshots)
		}
		if err := r.halt(); err != nil {
			t.Fatal(err)
		}
	}
}

// A short transaction_timeout (17 and newer) ends neither a snapshot nor a read
// beside the stream.
func TestTransactionTimeoutDoesNotCutASnapshot(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	if r.version() < 17_00_00 {
		t.Skip("transaction_timeout is new in 17")
	}
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'c' || g, 'r' FROM generate_series(1, 600) g`)
	r.Exec(`ALTER DATABASE ` + r.Name + ` SET transaction_timeout = '300ms'`)
	r.hooks.copied = func() {
		<-time.After(400 * time.Millisecond)
	}
	r.start()
	r.same("r")
	if v, found := r.verify(false); !v.Sound() {
		t.Errorf("verification found %v: %v", v, found)
	}
	if st := r.m.Status(); st.Snapshots != 1 || st.Reconnects != 0 {
		t.Errorf("status is %+v, want one snapshot at the first try", st)
	}
}

// Parameters of the URL that choose how pgx runs queries change nothing.
func TestQueryModeOfTheURL(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{
		"default_query_exec_mode=simple_protocol", "default_query_exec_mode=exec", "default_query_exec_mode=cache_describe",
		"statement_cache_capacity=0", "replication=database", "application_name=other&Application_Name=another",
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t).setup()
			r.role += "&" + mode
			r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'r')`)
			r.start()
			r.same("r")
			if v, found := r.verify(false); !v.Sound() {
				t.Errorf("verification found %v: %v", v, found)
			}
			if n := r.Int(`SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, r.m.cfg.ApplicationName); n == 0 {
				t.Error("no connection has the mirror's own name")
			}
		})
	}
}
