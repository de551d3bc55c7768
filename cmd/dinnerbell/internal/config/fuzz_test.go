package config

import (
	"strings"
	"testing"
)

// planted is a secret that no text of ours contains.
const planted = "Xq7Zk9Wv"

// hasFileReference reports whether a text names a file, which a fuzzed text must not open:
// a pipe would block.
func hasFileReference(text string) bool { return strings.Contains(text, "file:") }

// A configuration file of any text is read or refused, and neither an error nor the values
// that are shown repeat the password in it.
func FuzzReadFile(f *testing.F) {
	for _, text := range []string{
		"source: {url: 'postgres://u:" + planted + "@h/d'}\nkafka: {brokers: [k:9092]}\n",
		"source:\n  url: postgres://u:${PASSWORD}@h/d\n  table: '\"a.b\".c'\n",
		"kafka: {sasl: {mechanism: PLAIN, username: u, password: ${PASSWORD}}}\n",
		"a: &a [*a]\n", "kafka: {brokers: &b [x], group: *b}\n", "--- {}\n--- {}\n", "state: {checkpoint: {every: 1d12h, keep: 3}}\n",
		"limits: {max_audience: 99999999999999999999}\n", "? [x]\n: y\n", "<<: {}\n", "!!binary x", "\x00", "\xff\xfe", "log: {level: loud}\n", "sauce: {}\n", "kafka: {brokers: {a: 1}}\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if hasFileReference(string(data)) {
			return
		}
		cfg := Defaults()
		cfg.watchSecrets()
		env := Env{"PASSWORD": planted}
		problems := cfg.readFile("dinnerbell.yaml", data, env)
		problems = append(problems, cfg.readEnv(data, env)...)
		if len(problems) == 0 {
			if err := cfg.Validate(); err != nil {
				problems = append(problems, err)
			}
		}
		if strings.Contains(string(data), planted) {
			return // written as the file has it: FuzzParse of internal/postgres
		}
		for _, err := range problems {
			if strings.Contains(err.Error(), planted) {
				t.Errorf("%q: the error repeats a secret: %v", data, err)
			}
		}
	})
}

// Expansion leaves a text without ${ as it is, replaces each reference once, and its
// errors do not repeat the text around a reference.
func FuzzExpandText(f *testing.F) {
	for _, text := range []string{"", "plain $ text", "${PASSWORD}", "a${PASSWORD}b${PASSWORD}c", "$${PASSWORD}", "$$${PASSWORD}", "${", "${}", "${NONE}", "${PASSWORD", "${a b}", "${${PASSWORD}}"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if hasFileReference(text) {
			return
		}
		out, err := expandText(text, Env{"PASSWORD": "${" + planted + "}\n"})
		switch {
		case err != nil:
			if strings.Contains(err.Error(), planted) {
				t.Errorf("%q: %v", text, err)
			}
		case !strings.Contains(text, "${") && out != text:
			t.Errorf("%q became %q", text, out)
		case strings.Count(out, planted) > strings.Count(text, "${PASSWORD}")+strings.Count(text, planted):
			t.Errorf("%q became %q: more values than references", text, out)
		}
	})
}

// A password that was used is gone from every text.
func FuzzHide(f *testing.F) {
	for _, around := range [][2]string{{"", ""}, {"postgres://u:", "@h/d"}, {"password=", " x"}, {"password='", "'"}, {`secret = "`, `"`}, {"x", "x"}, {"https:/u:", "@"}, {`pwd=\"`, `\"`}} {
		f.Add(around[0], around[1])
	}
	f.Fuzz(func(t *testing.T, before, behind string) {
		cfg := Defaults()
		cfg.watchSecrets()
		cfg.seen.addSecret("kafka.sasl.password", planted)
		if shown := cfg.Hide(before + planted + behind); strings.Contains(shown, planted) {
			t.Errorf("%q is shown as %q", before+planted+behind, shown)
		}
	})
}

// The name of a table is refused, or is written and read as the same two names.
func FuzzParseTable(f *testing.F) {
	for _, text := range []string{"t", "s.t", `"a.b".t`, `s."t""u"`, `"`, `""`, ".", "a.b.c", `"a"b`, "Schema.Таблица", `s.`, `."x"`, strings.Repeat("x", 64)} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		table, err := parseTable(text)
		if err != nil {
			return
		}
		again, err := parseTable(table.String())
		if err != nil || again != table {
			t.Errorf("%q is %+v, written as %s, and read again as %+v, %v", text, table, table, again, err)
		}
	})
}

// Sizes, durations and reserves are refused or are not negative.
func FuzzParseQuantities(f *testing.F) {
	for _, text := range []string{"0", "1d12h", "7d", "500MB", "2GiB", "3%", "100%", "-1s", "1e9GB", "9223372036854775807", "99999999999d", "0.5%", "1w1w", "NaN%", "MB"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := parseBytes(text); err == nil && n < 0 {
			t.Errorf("%q is %d bytes", text, n)
		}
		if d, err := ParseDuration(text); err == nil && d < 0 && !strings.Contains(text, "-") {
			t.Errorf("%q is %v", text, d)
		}
		_, _ = parseSize(text)
		_, _ = parseReserve(text)
	})
}
