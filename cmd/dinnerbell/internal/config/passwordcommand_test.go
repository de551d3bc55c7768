package config

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"dinnerbell/internal/postgres"
)

// loadWithCommand loads a configuration whose source asks a shell script for the password.
func loadWithCommand(t *testing.T, address, script string) *Config {
	t.Helper()
	cfg, err := Load(write(t, "f.yaml", fmt.Sprintf("source:\n  url: %q\n  password_command: [sh, -c, %q]\nkafka: {brokers: ['k:1']}\n", address, script)), Env{})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// The password of each connection is what the command prints then, whatever characters it
// has, in a URL and in a keyword/value string; and it is hidden.
func TestPasswordCommand(t *testing.T) {
	t.Parallel()
	token := write(t, "token", "")
	for _, address := range []string{"postgres://u@db/de", "postgres://u@a,b/de?target_session_attrs=read-write", "postgresql:///de?user=u&host=db", "host=db user=u dbname=de"} {
		cfg := loadWithCommand(t, address, "cat '"+token+"'")
		for _, want := range []string{"first-token", `db:5432/?Action=connect&DBUser=u&X=%2F+ '"\ ü@#`} {
			if err := os.WriteFile(token, []byte(want+"\r\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			raw, err := cfg.SourceURL()
			if err != nil {
				t.Fatal(err)
			}
			o, err := postgres.Parse(raw)
			if err != nil || o.Password != want || o.User != "u" || o.Database != "de" {
				t.Errorf("%s: password %q of %q in %q, %v; want %q", address, o.Password, o.User, o.Database, err, want)
			}
			if sink, err := cfg.SinkURL(); err != nil || sink != raw {
				t.Errorf("the sink's address is %q, %v", sink, err)
			}
			if text := cfg.Hide("password " + want + " is wrong"); strings.Contains(text, want) {
				t.Errorf("shown: %s", text)
			}
		}
	}
}

// Of tokens that are new at each connection, the last ones are hidden, and the memory is
// bounded.
func TestTokensFillNoMemory(t *testing.T) {
	t.Parallel()
	cfg := loadWithCommand(t, "postgres://u@db/de", "true")
	for i := range 3 * maxRemembered {
		cfg.seen.addSecret("source.url", fmt.Sprintf("postgres://u:token-%d-end@db/de", i))
	}
	last := fmt.Sprintf("token-%d-end", 3*maxRemembered-1)
	if text := cfg.Hide("refused: " + last); strings.Contains(text, last) || len(cfg.seen.values) != maxRemembered {
		t.Errorf("%d are remembered; shown: %s", len(cfg.seen.values), text)
	}
}

// What is wrong with a command is named, and not what it printed.
func TestPasswordCommandFails(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]string{
		"echo hunter2; echo 'no credentials found' >&2; exit 3": "source.password_command: sh: exit status 3: no credentials found",
		"echo hunter2; echo 'hunter2 has expired' >&2; exit 3":  "sh: exit status 3: [redacted] has expired",
		"exit 1":                               "sh: exit status 1",
		"true":                                 "sh prints no password",
		"echo hunter2; echo more":              "sh prints more than one line",
		`printf 'hunter2\000'`:                 "sh prints more than one line, or no text",
		"head -c 70000 /dev/zero | tr '\\0' h": "sh prints more than 65536 bytes",
	} {
		if raw, err := loadWithCommand(t, "postgres://u@db/de", script).SourceURL(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %.100q, %.200v; want %s", script, raw, err, want)
		}
	}
	cfg := loadWithCommand(t, "postgres://u@db/de", "true")
	cfg.Source.PasswordCommand = []string{"no-such-program-of-dinnerbell"}
	if _, err := cfg.SourceURL(); err == nil || !strings.Contains(err.Error(), "no-such-program-of-dinnerbell is not installed, or not in PATH") {
		t.Errorf("a missing program: %v", err)
	}
}

func TestPasswordCommandIsValidated(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		"source: {url: 'postgres://u:pw@db/de', password_command: [x]}":                                "source.password_command: source.url has a password too",
		"source: {url: 'postgres://u@db/de'}\nsink: {password_command: [x]}":                           "sink.password_command: sink.url is not set",
		"source: {url: 'postgres://u@db/de'}\nsink: {url: 'postgres://u:p@db', password_command: [x]}": "sink.password_command: sink.url has a password too",
		"source: {url: 'postgres://u@db/de', password_command: [no-such-program]}":                     "",
	} {
		cfg, err := Load(write(t, "f.yaml", file+"\nkafka: {brokers: ['k:1']}\n"), Env{})
		if err != nil {
			t.Fatal(err)
		}
		if err := cfg.Validate(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", file, err, want)
		}
	}
}

// Connections that begin together share a run; none gets a password from before it began.
func TestPasswordCommandRunsAreShared(t *testing.T) {
	t.Parallel()
	runs := write(t, "runs", "")
	cfg := loadWithCommand(t, "postgres://u@db/de", "echo x >>'"+runs+"'; sleep 0.2; wc -l <'"+runs+"'")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := cfg.SourceURL(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	lines, err := os.ReadFile(runs)
	if err != nil {
		t.Fatal(err)
	}
	shared := len(lines) / 2
	if _, err := cfg.SourceURL(); err != nil {
		t.Fatal(err)
	}
	if lines, err = os.ReadFile(runs); err != nil || len(lines)/2 != shared+1 {
		t.Errorf("%d runs for a connection behind %d: %v", len(lines)/2-shared, shared, err)
	}
	if shared == 50 {
		t.Error("each of 50 connections ran the command")
	}
}

// A command that fails is not run for each of the connections that waited for it, one after
// the other: each run may take ten seconds.
func TestFailedPasswordCommandIsShared(t *testing.T) {
	t.Parallel()
	runs := write(t, "runs", "")
	cfg := loadWithCommand(t, "postgres://u@db/de", "echo x >>'"+runs+"'; sleep 0.2; exit 1")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if raw, err := cfg.SourceURL(); err == nil {
				t.Errorf("no error, but %q", raw)
			}
		})
	}
	wg.Wait()
	if lines, err := os.ReadFile(runs); err != nil || len(lines)/2 > 10 {
		t.Errorf("%d runs for 20 connections: %v", len(lines)/2, err)
	}
}

// The refusal of a command beside a password names where the password is.
func TestPasswordBesideCommandIsFound(t *testing.T) {
	for name, tc := range map[string]struct{ address, environment, want string }{
		"URL":                       {"postgres://u:secret@db/de", "", "source.url has a password too"},
		"parameter of the URL":      {"postgres://u@db/de?password=secret", "", "source.url has a password too"},
		"keyword":                   {"host=db user=u password=secret", "", "source.url has a password too"},
		"environment":               {"postgres://u@db/de", "elsewhere", "the environment variable PGPASSWORD has a password too; unset it, or leave the command out"},
		"environment beside a word": {"host=db user=u dbname=password", "elsewhere", "the environment variable PGPASSWORD"},
		"both":                      {"postgres://u:secret@db/de", "elsewhere", "source.url has a password too"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PGPASSWORD", tc.environment)
			err := loadWithCommand(t, tc.address, "true").Validate()
			if err == nil || !strings.Contains(err.Error(), "source.password_command: "+tc.want) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "elsewhere") {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("file", func(t *testing.T) {
		t.Setenv("PGPASSFILE", write(t, "pass", "*:*:*:*:secret\n"))
		err := loadWithCommand(t, "postgres://u@db/de", "true").Validate()
		if err == nil || !strings.Contains(err.Error(), "a password file of this user (PGPASSFILE or ~/.pgpass) has a password too") {
			t.Errorf("%v", err)
		}
	})
}
