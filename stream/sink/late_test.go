package sink

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/testenv/envtest"
)

// The served campaigns of a restaurant are looked up by the index that the option makes,
// and no statement by key uses that index, also where the tables were empty when the
// statements were planned.
func TestLateIndexesServeTheirLookUpsAlone(t *testing.T) {
	t.Parallel()
	db := envtest.Database(t)
	cfg := Config{URL: func() (string, error) { return db.URL, nil }, Schema: "public", Table: "subscribers_feedback", DaemonSchema: "dinnerbell"}
	for _, on := range []bool{false, true} {
		cfg.LateSubscribers = on
		did, err := Setup(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if made := strings.Contains(strings.Join(did, "\n"), "campaign_restaurant: created"); made != on {
			t.Errorf("with the option %t setup did %q", on, did)
		}
	}
	conn, err := cfg.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer CloseConn(conn)
	if err := PlanByKeys(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	tables := cfg.Tables()
	statements := newStepStatements(tables, ContractTable())
	plan := func(sql string) string {
		t.Helper()
		prepared, err := conn.Prepare(t.Context(), "s", sql)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Deallocate(t.Context(), "s") }() // the next one would fail
		nulls := strings.Repeat(", NULL", len(prepared.ParamOIDs))[2:]
		lines, err := QueryTexts(t.Context(), conn, "EXPLAIN EXECUTE s("+nulls+")", pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return strings.Join(lines, "\n")
	}
	for _, filled := range []bool{false, true} {
		if filled {
			db.Exec(`INSERT INTO dinnerbell.campaign SELECT 'c' || i, 'r' || i % 10, i % 4, 1, 0, i, 0, '', '', '', '', 1, 2, 1, 'finished', '', false FROM generate_series(1, 2000) i`)
			db.Exec(`ANALYZE dinnerbell.campaign`)
		}
		for _, s := range []*Statement{statements.edit, statements.repeat, statements.move, statements.late} {
			if p := plan(s.SQL); !strings.Contains(p, "campaign_pkey") || strings.Contains(p, "campaign_re") {
				t.Errorf("%s (filled: %t) is planned as\n%s", s.Name, filled, p)
			}
		}
		if p := plan(tables.ServedSQL()); !strings.Contains(p, "using campaign_restaurant") || !strings.Contains(p, "(restaurant_id = k.restaurant)") {
			t.Errorf("served campaigns (filled: %t) are looked up by\n%s", filled, p)
		}
	}
}
