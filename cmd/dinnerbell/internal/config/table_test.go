package config

import (
	"strings"
	"testing"
)

func TestTablesOfAnyName(t *testing.T) {
	t.Parallel()
	cfg, err := Load(write(t, "f.yaml", `{source: {url: 'postgres://x/y', table: '"a.b"."c.d"'}, sink: {table: '"a.b".fb'}, kafka: {brokers: ['k:9092']}}`), Env{})
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	if got := cfg.Sink.Table; got != (Table{"a.b", "fb"}) {
		t.Errorf("sink.table = %+v", got)
	}
}

func TestParseTable(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]Table{
		"public.a":        {"public", "a"},
		"a":               {"public", "a"},
		"S.Big":           {"S", "Big"},
		`"a.b".c`:         {"a.b", "c"},
		`s."we""ird.one"`: {"s", `we"ird.one`},
	} {
		got, err := parseTable(in)
		if err != nil || got != want {
			t.Errorf("parseTable(%q) = %v, %v; want %v", in, got, err, want)
		}
		if again, err := parseTable(got.String()); err != nil || again != got {
			t.Errorf("parseTable(%q) = %v, %v; its own String is not read back", got, again, err)
		}
	}
	for _, in := range []string{"", ".", "a.", ".a", "a.b.c", `"a`, `"a"b.c`, strings.Repeat("x", 64)} {
		if got, err := parseTable(in); err == nil {
			t.Errorf("parseTable(%q) = %v, want an error", in, got)
		}
	}
}
