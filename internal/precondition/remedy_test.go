package precondition_test

import (
	"slices"
	"testing"

	"dinnerbell/internal/precondition"
)

// Statements stand alone, since ALTER SYSTEM must not share a call with another one; what
// is no SQL is advice.
func TestRemedyIsTakenApart(t *testing.T) {
	t.Parallel()
	type list = []string
	for text, want := range map[string]precondition.Remedy{
		"ALTER SYSTEM SET max_slot_wal_keep_size = '32GB'; SELECT pg_reload_conf(); -- as much; as the disk allows": {
			Statements: list{"ALTER SYSTEM SET max_slot_wal_keep_size = '32GB'", "SELECT pg_reload_conf()"}, Advice: "as much; as the disk allows"},
		`ALTER ROLE "bell" REPLICATION`:                        {Statements: list{`ALTER ROLE "bell" REPLICATION`}},
		`GRANT SELECT ON "a; b" TO "x -- y"; then start again`: {Statements: list{`GRANT SELECT ON "a; b" TO "x -- y"`}, Advice: "then start again"},
		`SELECT ''';'; DROP ROLE "a""; b";`:                    {Statements: list{`SELECT ''';'`, `DROP ROLE "a""; b"`}},
		"timedatectl set-ntp true":                             {Advice: "timedatectl set-ntp true"},
		"add a line to pg_hba.conf; then SELECT pg_reload_conf()": {
			Advice: "add a line to pg_hba.conf; then SELECT pg_reload_conf()"},
		"": {},
		"GRANT SELECT ON \"a`b\" TO \"c`d; e\"; -- or `dinnerbell setup`": {
			Statements: list{"GRANT SELECT ON \"a`b\" TO \"c`d; e\""}, Advice: "or `dinnerbell setup`"},
		"look into /a`b, which is no pair": {Advice: "look into /a`b, which is no pair"},
		"`ALTER SYSTEM SET max_slot_wal_keep_size = -1`, then `SELECT pg_reload_conf()`": {
			Statements: list{"ALTER SYSTEM SET max_slot_wal_keep_size = -1", "SELECT pg_reload_conf()"}},
		"`SELECT 1` names the holder: end it, or wait": {Statements: list{"SELECT 1"}, Advice: "the statement names the holder: end it, or wait"},
		"`dinnerbell doctor` names the cause; run `ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf(); -- with a certificate`, and it goes on": {
			Statements: list{"ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"},
			Advice:     "`dinnerbell doctor` names the cause; run the statements (with a certificate), and it goes on"},
		"`dinnerbell setup`, if the topic is missing": {Advice: "`dinnerbell setup`, if the topic is missing"},
		"`dinnerbell audit`, `dinnerbell resolve`":    {Advice: "`dinnerbell audit`, `dinnerbell resolve`"},
		"`SELECT 1`, `dinnerbell resolve`":            {Statements: list{"SELECT 1"}, Advice: "the statement, `dinnerbell resolve`"},
	} {
		got := precondition.SplitRemedy(text)
		if !slices.Equal(got.Statements, want.Statements) || got.Advice != want.Advice {
			t.Errorf("%s:\n%q\n%q, want\n%q\n%q", text, got.Statements, got.Advice, want.Statements, want.Advice)
		}
	}
}

func TestRemedyIsCutOut(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][2]string{
		"refused":                               {"refused", ""},
		"refused (to mend: start (or stop) it)": {"refused", "start (or stop) it"},
		"a (to mend: b); c (to mend: d); e":     {"a; c; e", "b"},
		"cut (to mend: never en":                {"cut", "never en"},
		"a (to mend: b --group 'c)d' e); f":     {"a; f", "b --group 'c)d' e"},
		`a (to mend: b 'c'\''d)e'); f`:          {"a; f", `b 'c'\''d)e'`},
		"a (to mend: the servers' clocks); f":   {"a; f", "the servers' clocks"},
		"a (to mend: so 'tis); f":               {"a; f", "so 'tis"},
	} {
		if rest, remedy := precondition.CutRemedy(text); rest != want[0] || remedy != want[1] {
			t.Errorf("%q: %q, %q", text, rest, remedy)
		}
	}
}

func TestArgumentIsQuoted(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"c-1": "c-1", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$(x)": "'$(x)'", "50%:1": "50%:1", "-c": "'-c'", "a\nb": "'a\nb'",
	} {
		if got := precondition.QuoteArgument(in); got != want {
			t.Errorf("argument(%q) = %s, want %s", in, got, want)
		}
	}
}
