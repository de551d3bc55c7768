package sink

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/testenv/envtest"
)

// Each step compares the feedback table with its catalogue entries: these are read by
// keys, however small the catalogue was when it was last analyzed.
func TestShapeIsComparedByKeys(t *testing.T) {
	t.Parallel()
	for name, ddl := range map[string]string{
		"a table":             ``,
		"a partitioned table": `DROP TABLE subscribers_feedback; CREATE TABLE subscribers_feedback (` + partitionedColumns + `) PARTITION BY HASH (adv_campaign_id)`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := envtest.Database(t)
			if ddl != "" {
				db.Exec(ddl)
				for i := range 3 {
					db.Exec(fmt.Sprintf(`CREATE TABLE part%d PARTITION OF subscribers_feedback FOR VALUES WITH (MODULUS 3, REMAINDER %d)`, i, i))
				}
			}
			cfg := Config{URL: func() (string, error) { return db.URL, nil }, Schema: "public", Table: "subscribers_feedback", DaemonSchema: "dinnerbell"}
			if _, err := Setup(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			conn, err := cfg.Connect(t.Context(), "test")
			if err != nil {
				t.Fatal(err)
			}
			defer CloseConn(conn)
			if err := PlanByKeys(t.Context(), conn); err != nil {
				t.Fatal(err)
			}
			c, err := ReadCatalogue(t.Context(), conn, cfg.Tables())
			if err != nil {
				t.Fatal(err)
			}
			plan := explainStatement(t, conn, newStepStatements(cfg.Tables(), c.Feedback).shape.SQL, fmt.Sprintf("%d, '%s', '%s'", c.Feedback.OID, c.Feedback.Name, c.Feedback.Shape))
			scans := strings.Count(plan, "Index Scan using") + strings.Count(plan, "Index Only Scan using") + strings.Count(plan, "Bitmap Index Scan on")
			if scans == 0 || scans != strings.Count(plan, "Index Cond:") || strings.Contains(plan, "Seq Scan") {
				t.Errorf("the comparison is planned as\n%s", plan)
			}
		})
	}
}

const partitionedColumns = `id serial4 NOT NULL, restaurant_id text NOT NULL, adv_campaign_id text NOT NULL, adv_campaign_content text NOT NULL, adv_campaign_owner text NOT NULL,
  adv_campaign_owner_contact text NOT NULL, adv_campaign_datetime_start int8 NOT NULL, adv_campaign_datetime_end int8 NOT NULL, datetime_created int8 NOT NULL,
  client_id text NOT NULL, trigger_datetime_created int4 NOT NULL, feedback varchar NULL`

// explainStatement returns the plan of a prepared statement; it is an error if the
// statement fails.
func explainStatement(t *testing.T, conn *pgx.Conn, sql, args string) string {
	t.Helper()
	if _, err := conn.Exec(t.Context(), `PREPARE statement AS `+sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	rows, err := conn.Query(t.Context(), `EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) EXECUTE statement(`+args+`)`, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}
