package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/internal/halt"
	"dinnerbell/state"
	"dinnerbell/state/statedir"

	"github.com/alecthomas/kong"
)

// outcome is what a command line did.
type outcome struct {
	code           int
	stdout, stderr string
}

// dinnerbell runs a command line in this process.
func dinnerbell(t *testing.T, env []string, args ...string) outcome {
	t.Helper()
	var stdout, stderr strings.Builder
	code := runCommandLine(t.Context(), args, &stdout, &stderr, env)
	return outcome{code, stdout.String(), stderr.String()}
}

// An empty id, as of a variable of a script that is not set, is a usage error: it names
// nothing, and as a flag it would choose everything.
func TestEmptyValuesAreUsageErrors(t *testing.T) {
	t.Parallel()
	for _, line := range []string{
		"cancel|", "pause|", "resume|", "approve|", "cancel|c|--restaurant|", "cancel|c|--restaurant=", "explain||k", "explain|c|", "explain|c|k|--restaurant|",
		"subscribers|", "campaigns|--restaurant|", "checkpoint|restore|", "dead-letters|list|--reason|", "dead-letters|list|--since|",
		"dead-letters|retry|--reason|", "dead-letters|retry|--since|", "dead-letters|retry|", "replay|--from|", "replay|--from|1h|--until|", "preview|",
	} {
		got := dinnerbell(t, []string{"DINNERBELL_SOURCE_URL=postgres://u@127.0.0.1:1/de", "DINNERBELL_KAFKA_BROKERS=127.0.0.1:1"}, strings.Split(line, "|")...)
		if got.code != exitUsage || got.stdout != "" || got.stderr == "" {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

// A command beside the process that has state.dir open names the folder once, and the way
// that works beside a daemon.
func TestStateDirectoryInUse(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	store, err := state.Open(dir, state.Options{ReserveBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	env := []string{"DINNERBELL_SOURCE_URL=postgres://u@127.0.0.1:1/de", "DINNERBELL_KAFKA_BROKERS=127.0.0.1:1", "DINNERBELL_STATE_DIR=" + dir, "DINNERBELL_HTTP_LISTEN=127.0.0.1:0"}
	for line, want := range map[string]string{
		"run":               "stop it, or give this one another state.dir",
		"checkpoint create": "stop it, or give this one another state.dir",
		"rebuild --offline": "if that is the daemon, it rebuilds while it serves: dinnerbell rebuild\n",
	} {
		got := dinnerbell(t, env, strings.Fields(line)...)
		if got.code != exitFailed || strings.Count(got.stderr, dir) != 1 || !strings.Contains(got.stderr, fmt.Sprint("is in use by process ", os.Getpid())) || !strings.Contains(got.stderr, want) {
			t.Errorf("%s: %+v", line, got)
		}
	}
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir() // without a dinnerbell.yaml
	t.Chdir(dir)
	if err := os.WriteFile("bad.yaml", []byte("source: {url: 'postgres://a/b'}\nkafka: {brokers: ['k:1']}\njoin: {freshness: fresh}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args   []string
		env    []string
		code   int
		stdout string // all of it begins so
		stderr string // is in it
	}{
		"help":            {args: []string{"--help"}, code: 0, stdout: "Usage: dinnerbell <command>"},
		"help of command": {args: []string{"demo", "--help"}, code: 0, stdout: "Usage: dinnerbell demo"},
		"version flag":    {args: []string{"--version"}, code: 0, stdout: "dinnerbell dev (commit "},
		"config file":     {args: []string{"config", "check"}, env: []string{"DINNERBELL_CONFIG=bad.yaml", "DINNERBELL_JOIN_FRESHNESS=off"}, code: 0, stdout: "configuration is valid: " + filepath.Join(dir, "bad.yaml") + ", 1 variable of the environment\n"},
		"config mistakes": {args: []string{"config", "check"}, env: []string{"DINNERBELL_CONFIG=bad.yaml", "DINNERBELL_JOIN_FRESHNESS=soon"}, code: 2, stderr: "join.freshness"},
		"no health":       {args: []string{"health"}, code: 1, stderr: "no daemon is running"},
		"completion":      {args: []string{"completion", "bash"}, code: 0, stdout: "_dinnerbell() {"},
		"no such shell":   {args: []string{"completion", "tcsh"}, code: 2, stderr: "tcsh"},
		"completed":       {args: []string{"__complete", "--", "check"}, code: 0, stdout: "checkpoint\n"},
		"version":         {args: []string{"version"}, code: 0, stdout: "dinnerbell dev (commit "},
		"version json":    {args: []string{"version", "--json"}, code: 0, stdout: `{"version":"dev","commit":"`},
		"nothing":         {args: nil, code: 2, stderr: "see dinnerbell --help"},
		"unknown command": {args: []string{"serve"}, code: 2, stderr: "serve"},
		"unknown flag":    {args: []string{"run", "--fast"}, code: 2, stderr: "unknown flag --fast (see dinnerbell run --help)"},
		"no config":       {args: []string{"run"}, code: 2, stderr: "source.url: not set"},
		"no such config":  {args: []string{"-c", "x.yaml", "run"}, code: 2, stderr: "x.yaml: no such file"},
		"config refused":  {args: []string{"-c", "bad.yaml", "run"}, code: 2, stderr: "join.freshness"},
		"setup refused":   {args: []string{"setup", "-c", "bad.yaml"}, code: 2, stderr: "join.freshness"},
		"bad variable":    {args: []string{"status"}, env: []string{"DINNERBELL_STATE_DRI=x"}, code: 2, stderr: "did you mean DINNERBELL_STATE_DIR?"},
		"no daemon":       {args: []string{"status"}, code: 1, stderr: "no daemon is running with state.dir ./data"},
		"capacity":        {args: []string{"capacity", "--subscriptions", "1e9"}, code: 0, stdout: "               resource  "},
		"capacity json":   {args: []string{"capacity", "--json"}, code: 0, stdout: "{\n  \"workload\": {\n    \"subscriptions\": 10000000,"},
		"one machine":     {args: []string{"capacity", "--one-machine", "1"}, code: 0, stdout: "2"},
		"no audience":     {args: []string{"capacity", "--audience", "0"}, code: 2, stderr: "--audience must be above zero"},
		"overuse":         {args: []string{"capacity", "--use", "1.5"}, code: 2, stderr: "--use must be"},
		"no units":        {args: []string{"capacity", "--units", "absent"}, code: 2, stderr: "absent"},
		"tiny demo":       {args: []string{"demo", "--restaurants", "3"}, code: 2, stderr: "at least"},
		"doctor":          {args: []string{"doctor"}, code: 2, stderr: "source.url: not set"},
		"replay":          {args: []string{"replay", "--from", "earliest"}, code: 1, stderr: "no daemon is running"},
		"replay nothing":  {args: []string{"replay"}, code: 2, stderr: "--from"},
		"replay until":    {args: []string{"replay", "--from", "2h", "--until", "soon"}, code: 2, stderr: "--until"},
		"verify":          {args: []string{"verify", "--repair"}, code: 1, stderr: "no daemon is running"},
		"subscribers":     {args: []string{"subscribers", "r"}, code: 1, stderr: "there is no local state"},
		"preview":         {args: []string{"preview", "f.json"}, code: 2, stderr: "f.json: no such file"},
		"explain":         {args: []string{"explain", "c", "k"}, code: 2, stderr: "source.url: not set"},
		"dead letters":    {args: []string{"dead-letters", "list", "--json"}, code: 2, stderr: "source.url: not set"},
	} {
		t.Run(name, func(t *testing.T) {
			got := dinnerbell(t, tc.env, tc.args...)
			if got.code != tc.code {
				t.Errorf("exit %d, want %d", got.code, tc.code)
			}
			if !strings.HasPrefix(got.stdout, tc.stdout) || tc.stdout == "" && got.stdout != "" {
				t.Errorf("stdout %q, want %q…", got.stdout, tc.stdout)
			}
			if !strings.Contains(got.stderr, tc.stderr) || tc.code == 0 && got.stderr != "" {
				t.Errorf("stderr %q, want one with %q", got.stderr, tc.stderr)
			}
		})
	}
}

func TestSetupPrintsSQL(t *testing.T) {
	t.Chdir(t.TempDir())
	got := dinnerbell(t, []string{"DINNERBELL_SOURCE_URL=postgres://nobody@127.0.0.1:1/x", "DINNERBELL_KAFKA_BROKERS=127.0.0.1:1"}, "setup", "--print-sql")
	if got.code != 0 || got.stderr != "" {
		t.Fatalf("exit %d, stderr %s", got.code, got.stderr)
	}
	for _, want := range []string{
		`CREATE PUBLICATION "dinnerbell" FOR TABLE "public"."subscribers_restaurants"`,
		`CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS "subscribers_feedback_adv_campaign_id_client_id_idx" ON`, "(adv_campaign_id, client_id);",
		`GRANT SELECT ON "public"."subscribers_restaurants" TO "nobody";`, `GRANT SELECT, INSERT ON "public"."subscribers_feedback" TO "nobody";`,
		`GRANT USAGE ON SEQUENCE`, `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "dinnerbell" TO "nobody";`, "-- topics: campaigns, notifications",
	} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("%q is not in\n%s", want, got.stdout)
		}
	}
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{statedir.ErrLocked, 1},
		{control.ErrNoDaemon, 1},
		{errUsage, 2},
		{config.ErrInvalid, 2},
		{&halt.Error{Part: halt.Source, What: "slot"}, 3},
		{&halt.Error{Part: halt.Stream, What: "sink"}, 3},
		{&halt.Error{Part: halt.State, What: "disk"}, 3},
		{state.ErrNewerFormat, 3},
		{state.ErrForeign, 3},
	} {
		if got := exitCode(tc.err); got != tc.want {
			t.Errorf("exitCode(%v) = %d, want %d", tc.err, got, tc.want)
		}
		if tc.err == nil {
			continue
		}
		if got := exitCode(errors.Join(fmt.Errorf("do it: %w", tc.err), errors.New("close"))); got != tc.want {
			t.Errorf("exitCode(wrapped %v) = %d, want %d", tc.err, got, tc.want)
		}
	}
}

// The file of -c is found from where the command was started.
func TestConfigFileIsRead(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	file := filepath.Join(dir, "a.yaml")
	if err := os.WriteFile(file, []byte("state: {dir: /nowhere/of/mine}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, "a.yaml"} {
		if got := dinnerbell(t, nil, "-c", path, "status"); !strings.Contains(got.stderr, "/nowhere/of/mine") {
			t.Errorf("-c %s: %s", path, got.stderr)
		}
	}
}

// Every command that the help lists shows an example.
func TestHelpShowsExamples(t *testing.T) {
	var visit func(n *kong.Node)
	seen := 0
	visit = func(n *kong.Node) {
		for _, c := range n.Children {
			visit(c)
		}
		if n.Hidden || len(n.Children) > 0 || n.Type != kong.CommandNode {
			return
		}
		seen++
		if got := dinnerbell(t, nil, append(strings.Fields(n.Path()), "--help")...); !strings.Contains(got.stdout, "Example") || !strings.Contains(got.stdout, "  dinnerbell ") {
			t.Errorf("the help of %s has no example:\n%s", n.Path(), got.stdout)
		}
	}
	parser, err := kong.New(&commandLine{}, kong.Name("dinnerbell"), kong.Vars{"version": ""})
	if err != nil {
		t.Fatal(err)
	}
	visit(parser.Model.Node)
	if seen < 20 {
		t.Errorf("%d commands", seen)
	}
}
