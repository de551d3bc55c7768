package doctor

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/internal/postgres"
	"dinnerbell/internal/precondition"
)

var sample = []Section{
	{"source", precondition.Report{
		{Name: "source.connection", Found: "Postgres 15.18 at db:5432"},
		{Name: "source.version", Found: precondition.PlainOK},
		{Name: "source.columns", Level: precondition.Fail, Object: "the role in source.url", Found: `may not read column "id"`, Fix: `GRANT SELECT ON "public"."subscribers_restaurants" TO "dinnerbell"`},
		{Name: "source.wal_limit", Level: precondition.Warn, Object: "the server", Found: "max_slot_wal_keep_size is -1, no limit", Effect: "while the daemon is stopped its slot can fill the server's disk",
			Fix: "ALTER SYSTEM SET max_slot_wal_keep_size = '32GB'; SELECT pg_reload_conf(); -- as much as the disk allows"},
		{Name: "source.encoding", Found: precondition.PlainOK},
	}},
	{"kafka", precondition.Report{
		{Name: "kafka.connection", Level: precondition.Fail, Object: "broker k:9092", Found: "plaintext spoken to a TLS port: EOF", Fix: "set kafka.tls.enabled: true; or name another port in kafka.brokers"},
		{Name: "kafka.topics", Level: precondition.Unknown, Found: "cannot be checked: no connection"},
		{Name: "kafka.group", Level: precondition.Unknown, Found: "cannot be checked: no connection"},
		{Name: "kafka.progress.cleanup_policy", Level: precondition.Fail, Object: "topic dinnerbell.progress", Found: "cleanup.policy is delete\x1b[2J", Effect: "retention deletes it",
			Fix: "kafka-configs.sh --bootstrap-server kafka.example.internal:9092 --alter --entity-type topics --entity-name dinnerbell.progress --add-config cleanup.policy=compact"},
	}},
}

const printed = `source
  connection               ok       Postgres 15.18 at db:5432
  columns                  FAIL     the role in source.url: may not read column
                                    "id"
      GRANT SELECT ON "public"."subscribers_restaurants" TO "dinnerbell";
  wal_limit                warn     the server: max_slot_wal_keep_size is -1, no
                                    limit; while the daemon is stopped its slot
                                    can fill the server's disk
      ALTER SYSTEM SET max_slot_wal_keep_size = '32GB';
      SELECT pg_reload_conf();
      -- as much as the disk allows
  also                     ok       version, encoding

kafka
  connection               FAIL     broker k:9092: plaintext spoken to a TLS
                                    port: EOF
      set kafka.tls.enabled: true; or name another port in kafka.brokers
  progress.cleanup_policy  FAIL     topic dinnerbell.progress: cleanup.policy is
                                    delete\u001b[2J; retention deletes it
      kafka-configs.sh --bootstrap-server kafka.example.internal:9092 --alter \
      --entity-type topics --entity-name dinnerbell.progress --add-config \
      cleanup.policy=compact
  2 checks                 unknown  cannot be checked: no connection (topics,
                                    group)

3 must be mended, 1 to look at, 2 not known
`

// The output fits its width; statements and commands can be pasted as they are; what a
// terminal would obey is text.
func TestPrint(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	if err := Print(&out, terminal.Style{Width: 80}, sample); err != nil {
		t.Fatal(err)
	}
	if out.String() != printed {
		t.Errorf("%s\nwant\n%s", out.String(), printed)
	}
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(line) - 1; n > 80 {
			t.Errorf("%d characters: %s", n, line)
		}
	}
	out.Reset()
	if err := Print(&out, terminal.Style{Width: 100, Colour: true}, sample); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); !strings.Contains(text, "\x1b[1;31mFAIL\x1b[0m") || !strings.Contains(text, `\u001b[2J`) {
		t.Errorf("%q", text)
	}
	out.Reset()
	if err := Print(&out, terminal.Style{Width: 80}, []Section{{"source", precondition.Report{{Name: "source.version", Found: "15"}}}}); err != nil || !strings.HasSuffix(out.String(), "\nall is well\n") {
		t.Errorf("%q, %v", out.String(), err)
	}
}

// What stands in quotes is pasted as it is: a line does not end there, and blanks stay.
func TestQuotesStayWhole(t *testing.T) {
	t.Parallel()
	for fix, want := range map[string][]string{
		`DROP RULE "a rule  with ; blanks" ON "public"."my ""old""  table"; -- or  not`: {`DROP RULE`, `"a rule  with ; blanks" ON`, `"public"."my ""old""  table";`, `-- or not`},
		`ROLLBACK PREPARED 'the second  one'; -- in that database`:                      {`ROLLBACK PREPARED`, `'the second  one';`, `-- in that database`},
		`dinnerbell cancel 'a campaign  of it'\''s own' --restaurant 'r  1'`:            {`dinnerbell cancel \`, `'a campaign  of it'\''s own' \`, `--restaurant 'r  1'`},
		`the owner's word, and the reader's`:                                            {`the owner's word, and the`, `reader's`},
	} {
		if got := fixLines(fix, 26); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", fix, got, want)
		}
	}
}

// The remedy for a server without TLS has statements, and no prose between them.
func TestStatementsOfAServerWithoutTLS(t *testing.T) {
	t.Parallel()
	o, err := postgres.Parse("postgres://bell@db:5432/de?sslmode=require")
	if err != nil {
		t.Fatal(err)
	}
	fix := postgres.ExplainConnect(t.Context(), errors.New("server refused TLS connection"), o, "source.url").Fix
	if got := precondition.SplitRemedy(fix).Statements; !slices.Equal(got, []string{"ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"}) {
		t.Errorf("%q", got)
	}
}
