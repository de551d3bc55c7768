package config

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
)

// A rotated credential is seen by the next use.
func TestSecretIsReadAnew(t *testing.T) {
	t.Parallel()
	file := write(t, "pw", "old\n")
	cfg, err := Load(write(t, "f.yaml", "source: {url: 'postgres://u:${file:"+file+"}@db/de'}"), Env{})
	if err != nil {
		t.Fatal(err)
	}
	for _, pw := range []string{"first", "second"} {
		if err := os.WriteFile(file, []byte(pw), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := cfg.SourceURL(); err != nil || got != "postgres://u:"+pw+"@db/de" {
			t.Errorf("url = %q, %v", got, err)
		}
	}
}

func TestSecretIsNeverShown(t *testing.T) {
	t.Parallel()
	s := Secret{key: "k", raw: "hunter2", env: Env{}}
	asJSON, err := json.Marshal(map[string]any{"s": s, "p": &s})
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "s", s, "cfg", Source{URL: s})
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "s", s, "cfg", Source{URL: s})
	shown := []string{string(asJSON), log.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		shown = append(shown, fmt.Sprintf(verb, s), fmt.Sprintf(verb, &s), fmt.Sprintf(verb, Source{URL: s}))
	}
	for _, out := range shown {
		if strings.Contains(out, "hunter2") || strings.Contains(out, "68756e74657232") {
			t.Errorf("shown: %s", out)
		}
	}
}

// A server may repeat the password in its error. Every password that was revealed
// is hidden, a former one too, as sent and as written in the URL.
func TestHide(t *testing.T) {
	t.Parallel()
	file := write(t, "pw", "first-p%40ss")
	cfg, err := Load(write(t, "f.yaml", "source: {url: 'postgres://role_of_it:${file:"+file+"}@db/de'}\nsink: {url: 'postgres://role_of_it:role_of_it@db/de'}\n"+
		"kafka: {brokers: ['k:1'], sasl: {mechanism: PLAIN, username: some-principal, password: kafka-s3cret}}"), Env{})
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.Hide("first-p@ss"); got != "first-p@ss" {
		t.Errorf("before it was used: %q", got)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("second-p@ss"), 0o600); err != nil { // not encoded: refused, not used
		t.Fatal(err)
	}
	if _, err := cfg.SourceURL(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("third-pass"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.SourceURL(); err != nil {
		t.Fatal(err)
	}
	got := cfg.Hide("a first-p@ss b first-p%40ss c third-pass d kafka-s3cret e some-principal f role_of_it g password authentication failed")
	want := "a [redacted] b [redacted] c [redacted] d [redacted] e some-principal f role_of_it g password authentication failed"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestHideUserinfo(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`source.table: "postgres://u:zz9@h/de" has more than two parts`: `source.table: "postgres://[redacted]@h/de" has more than two parts`,
		"a sasl://u:a@zz9@h:1 b":                             "a sasl://[redacted]@h:1 b",
		"open postgres:/u:zz9@h/de: no such file":            "open postgres:/[redacted]@h/de: no such file",
		`mechanism: "PlainLoginModule password=\"zz9 a\";"`:  `mechanism: "PlainLoginModule password=[redacted];"`,
		"table: host=h password = 'zz9 a' user=u":            "table: host=h password = [redacted] user=u",
		"?password=zz9&user=u":                               "?password=[redacted]&user=u",
		`FATAL: password authentication failed for user "u"`: `FATAL: password authentication failed for user "u"`,
		"postgres://u@h/de":                                  "postgres://u@h/de",
		"http://127.0.0.1:8420/":                             "http://127.0.0.1:8420/",
	} {
		if got := HideUserinfo(in); got != want {
			t.Errorf("HideUserinfo(%q) = %q", in, got)
		}
	}
}
