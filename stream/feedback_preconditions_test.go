package stream

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"dinnerbell/internal/precondition"
	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
)

// A table that the catalogue shows to be unusable is refused, with the statement that
// mends it.
func TestFeedbackTablesThatAreRefused(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, nil)
	moments := []precondition.Moment{precondition.AtSetup, precondition.AtStart, precondition.AtSession}
	for _, c := range []struct {
		name string
		ddl  []string
		want []string
	}{
		{"no table", nil, []string{"does not exist", "CREATE TABLE"}},
		{"missing column", []string{feedbackDDL("", "adv_campaign_owner_contact text NOT NULL,", "")}, []string{"column adv_campaign_owner_contact is missing", "ADD COLUMN adv_campaign_owner_contact text"}},
		{"misspelt column", []string{feedbackDDL("", "restaurant_id", "restaurent_id")}, []string{"column restaurant_id is missing", `RENAME COLUMN "restaurent_id" TO restaurant_id`}}, //nolint:misspell // on purpose
		{"extra column", []string{feedbackDDL(`, "Tenant" text NOT NULL`)}, []string{"column Tenant is NOT NULL", `ALTER COLUMN "Tenant" DROP NOT NULL`}},
		{"feedback required", []string{feedbackDDL("", "feedback varchar NULL", "feedback varchar NOT NULL")}, []string{"column feedback is NOT NULL"}},
		{"domain not null", []string{`CREATE DOMAIN d AS text NOT NULL`, feedbackDDL(`, extra d`)}, []string{"column extra is NOT NULL"}},
		{"date", []string{feedbackDDL("", timesOf("date")...)}, []string{"adv_campaign_datetime_start is of type date", "TYPE bigint USING extract(epoch FROM adv_campaign_datetime_start)"}},
		{"text times", []string{feedbackDDL("", timesOf("text")...)}, []string{"is of type text", "TYPE bigint USING"}},
		{"number id", []string{feedbackDDL("", "client_id text", "client_id bigint")}, []string{"client_id is of type bigint", "TYPE text USING client_id::text"}},
		{"char content", []string{feedbackDDL("", "content text", "content char(100)")}, []string{"adv_campaign_content is of type character(100)"}},
		{"generated", []string{feedbackDDL("", "owner_contact text NOT NULL", "owner_contact text GENERATED ALWAYS AS ('x') STORED")}, []string{"adv_campaign_owner_contact is generated", "DROP EXPRESSION"}},
		{"identity", []string{feedbackDDL("", "created int8 NOT NULL", "created int8 GENERATED ALWAYS AS IDENTITY")}, []string{"is an identity column", "DROP IDENTITY"}},
		{"collation", []string{`CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`, feedbackDDL("", "client_id text", "client_id text COLLATE ci")}, []string{"nondeterministic", `COLLATE "C"`}},
		{"view", []string{feedbackDDL("", "subscribers_feedback", "base"), `CREATE VIEW subscribers_feedback AS SELECT * FROM base`}, []string{"is a view"}},
		{"materialized view", []string{feedbackDDL("", "subscribers_feedback", "base"), `CREATE MATERIALIZED VIEW subscribers_feedback AS SELECT * FROM base`}, []string{"is a materialized view"}},
		{"unlogged partition", []string{feedbackDDL("", " PRIMARY KEY", "") + ` PARTITION BY LIST (adv_campaign_id)`, `CREATE UNLOGGED TABLE public.part PARTITION OF subscribers_feedback DEFAULT`}, []string{"partition public.part is not logged", "ALTER TABLE public.part SET LOGGED"}},
		{"foreign partition", []string{feedbackDDL("", " PRIMARY KEY", "") + ` PARTITION BY LIST (adv_campaign_id)`, `CREATE EXTENSION postgres_fdw; CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw`, `CREATE FOREIGN TABLE public.part PARTITION OF subscribers_feedback DEFAULT SERVER elsewhere`}, []string{"partition public.part is a foreign table", "DETACH PARTITION public.part"}},
		{"unlogged", []string{feedbackDDL("", "CREATE TABLE", "CREATE UNLOGGED TABLE")}, []string{"not logged", "SET LOGGED"}},
		{"inherited", []string{feedbackDDL(""), `CREATE TABLE child () INHERITS (subscribers_feedback)`}, []string{"tables inherit"}},
		{"rule", []string{feedbackDDL(""), `CREATE RULE drop_all AS ON INSERT TO subscribers_feedback DO INSTEAD NOTHING`}, []string{"rule drop_all", `DROP RULE "drop_all"`}},
		{"partition key", []string{feedbackDDL("", "PRIMARY KEY", "") + ` PARTITION BY RANGE (trigger_datetime_created)`}, []string{"partitioned by trigger_datetime_created"}},
		{"partition expression", []string{feedbackDDL("", "PRIMARY KEY", "") + ` PARTITION BY HASH (lower(client_id))`}, []string{"partitioned by an expression"}},
		{"sequence at its end", []string{feedbackDDL(""), `SELECT setval('subscribers_feedback_id_seq', 2147483647)`}, []string{"has used 2147483647 of 2147483647", "ALTER COLUMN id TYPE bigint; ALTER SEQUENCE public.subscribers_feedback_id_seq AS bigint"}},
		{"sequence behind", []string{feedbackDDL(""), strings.NewReplacer("(restaurant_id", "(id, restaurant_id", "VALUES ('c'", "VALUES (5, 'c'", "VALUES (", "VALUES (5, ", "$1", "'x'").Replace(aRow)}, []string{"rows with numbers above 0", "setval('public.subscribers_feedback_id_seq'"}},
	} {
		w.db.Exec(`DROP SCHEMA public CASCADE; CREATE SCHEMA public`)
		for _, sql := range c.ddl {
			w.db.Exec(sql)
		}
		for _, moment := range moments {
			report, err := takeover.Preconditions(t.Context(), w.cfg.Config, moment)
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			violation, _ := report.Violation()
			for _, want := range c.want {
				if !strings.Contains(violation.String(), want) {
					t.Errorf("%s, moment %d: %q is not in: %s", c.name, moment, want, violation)
				}
			}
		}
	}
}

// A table that works for now draws a warning.
func TestFeedbackTablesThatAreWarnedAbout(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, nil)
	w.db.Exec(`SELECT setval('subscribers_feedback_id_seq', 1800000000)`)
	w.db.Exec(`ALTER TABLE subscribers_feedback ADD COLUMN n int4 GENERATED BY DEFAULT AS IDENTITY (MAXVALUE 5)`)
	w.db.Exec(`SELECT setval('subscribers_feedback_n_seq', 4)`)
	w.db.Exec(`ALTER TABLE subscribers_feedback ALTER adv_campaign_datetime_end TYPE int4`)
	w.db.Exec(`CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'`)
	w.db.Exec(`CREATE TRIGGER early BEFORE INSERT ON subscribers_feedback FOR EACH ROW EXECUTE FUNCTION f()`)
	report, err := takeover.Preconditions(t.Context(), w.cfg.Config, precondition.AtStart)
	if err != nil {
		t.Fatal(err)
	}
	if violation, ok := report.Violation(); ok {
		t.Errorf("refused: %s", violation)
	}
	for _, want := range []string{"has used 1800000000 of 2147483647", "ALTER SEQUENCE public.subscribers_feedback_n_seq NO MAXVALUE", "adv_campaign_datetime_end is of type integer", "trigger early"} {
		if !slices.ContainsFunc(report.At(precondition.Warn), func(f precondition.Finding) bool { return strings.Contains(f.String(), want) }) {
			t.Errorf("no warning of %s: %+v", want, report.At(precondition.Warn))
		}
	}
}

// latinWorld is a world whose sink is a database in LATIN1.
func latinWorld(t *testing.T, subs map[string][]string) *deployment {
	t.Helper()
	w := newDeployment(t, 1, subs)
	name := w.db.Name + "_latin"
	w.db.Exec(`CREATE DATABASE ` + name + ` ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0`)
	at := strings.LastIndex(w.db.URL, w.db.Name)
	cfg, err := pgxpool.ParseConfig(w.db.URL[:at] + name + w.db.URL[at+len(w.db.Name):])
	if err != nil {
		t.Fatal(err)
	}
	cfg.ConnConfig.RuntimeParams["client_encoding"] = "UTF8"
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	outer := w.db
	t.Cleanup(func() {
		pool.Close()
		if _, err := outer.Pool.Exec(context.Background(), `DROP DATABASE `+name+` WITH (FORCE)`); err != nil {
			t.Errorf("drop: %v", err)
		}
	})
	w.db = envtest.On(t, pool.Config().ConnString(), pool)
	w.db.Exec(testenv.ContractTables)
	if _, err := sink.Setup(t.Context(), w.cfg.Sink); err != nil {
		t.Fatal(err)
	}
	return w
}

// A database that cannot hold a text refuses that campaign or that client, and
// nothing behind it.
func TestSinkThatIsNotUnicode(t *testing.T) {
	t.Parallel()
	good := append(clients("0000", 12), "café")
	w := latinWorld(t, map[string][]string{"r1": append(slices.Clone(good), "клиент")})
	w.start()
	bad := w.campaign("c1", "r1")
	bad.Content = "акция"
	plain := w.campaign("c2", "r1")
	plain.Content = "promoción"
	id := w.campaign("кампания", "r1")
	w.produce(0, encodeCampaign(bad), encodeCampaign(id), encodeCampaign(plain), encodeCampaign(w.campaign("c3", "r1")))
	w.expect(map[string][]string{"c2": good, "c3": good})
	envtest.Until(t, patience, func() error {
		dead := w.deadLetters()
		if len(dead) != 4 {
			return fmt.Errorf("%d dead letters", len(dead))
		}
		for i, d := range dead {
			if i < 2 && (!strings.Contains(d.Reason, "LATIN1") || d.FromAt != int64(i)) || i >= 2 && !strings.Contains(string(d.Value), "клиент") {
				return fmt.Errorf("dead letter %d of offset %d: %s: %s", i, d.FromAt, d.Reason, d.Value)
			}
		}
		return nil
	})
}
