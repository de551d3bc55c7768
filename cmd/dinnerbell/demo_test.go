package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// demoProcess starts a small `dinnerbell demo` as a process, with its own temporary
// folder, which must be empty at the end.
func demoProcess(t *testing.T, args ...string) (cmd *exec.Cmd, stderr *syncBuffer, left func() []os.DirEntry) {
	t.Helper()
	tmp := envtest.Dir(t)
	args = append([]string{"demo", "--subscriptions", "3000", "--restaurants", "40"}, args...)
	cmd = exec.CommandContext(t.Context(), envtest.Binary(t), args...)
	// Variables that name a real system must not reach the demo's children.
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "DINNERBELL_SOURCE_URL=postgres://127.0.0.1:1/real", "DINNERBELL_KAFKA_GROUP=real")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // kfake must not be killed
	stderr = &syncBuffer{}
	cmd.Stderr = stderr
	return cmd, stderr, func() []os.DirEntry {
		entries, err := os.ReadDir(tmp)
		if err != nil {
			t.Fatal(err)
		}
		return entries
	}
}

func TestDemoOnce(t *testing.T) {
	t.Parallel()
	cmd, stderr, left := demoProcess(t, "--once", "--json")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, out, stderr)
	}
	var got map[string]float64
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s\n%s", err, out, stderr)
	}
	if len(got) != 6 || got["campaigns"] < 20 || got["notifications"] == 0 || got["notifications"] != got["feedback_rows"] ||
		got["missing"] != 0 || got["duplicates"] != 0 || got["seconds"] <= 0 {
		t.Errorf("result %s\n%s", out, stderr)
	}
	if l := left(); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
}

// The daemon is killed twice in the middle of its work; each time both sinks are compared.
// A line takes 80 columns.
func TestDemoChaos(t *testing.T) {
	t.Parallel()
	cmd, stderr, left := demoProcess(t, "--chaos", "--once")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, out, stderr)
	}
	for _, want := range []string{"kill -9 ", "1 kills, ", "2 kills, ", "missing 0, doubled 0\n", `"trigger_datetime_created": `} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(string(out), "\x1b[") {
		t.Errorf("colours where no terminal is:\n%s", out)
	}
	checkFirstLine(t, stderr.String())
	if !strings.Contains(stderr.String(), "killed 2 times; compared 2 times: missing 0, doubled 0") {
		t.Errorf("messages:\n%s", stderr)
	}
	for line := range strings.Lines(string(out)) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if l := left(); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
}

// checkFirstLine checks that the demo's first line is the address of its live page, and that
// no other line has another address.
func checkFirstLine(t *testing.T, messages string) {
	t.Helper()
	first, rest, _ := strings.Cut(messages, "\n")
	address, found := strings.CutPrefix(first, "Live page:  ")
	if u, err := url.Parse(address); !found || err != nil || u.Hostname() != "127.0.0.1" || u.Port() == "" {
		t.Errorf("the first line is no address of the live page: %q", first)
	}
	if !strings.Contains(rest, "Live page:  "+address+"\n") {
		t.Errorf("the hints do not repeat %s:\n%s", address, rest)
	}
}

// Who follows the first line at once finds a page, before the servers run; this page gives
// way to the daemon's.
func TestDemoPageFromTheStart(t *testing.T) {
	t.Parallel()
	cmd, _, left := demoProcess(t)
	cmd.Stderr = nil
	messages, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(messages)
	if !lines.Scan() {
		t.Fatal("no message")
	}
	address := strings.TrimPrefix(lines.Text(), "Live page:  ")
	if page := string(getPage(t, address)); !strings.Contains(page, "is starting") {
		t.Errorf("%s answers\n%s", address, page)
	}
	for lines.Scan() && !strings.Contains(lines.Text(), "Ctrl-C") { // the hints come when the daemon is ready
	}
	if page := string(getPage(t, address)); strings.Contains(page, "is starting") || !strings.Contains(page, "dinnerbell") {
		t.Errorf("the daemon's page:\n%s", page)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() { // Wait wants the pipe read to its end
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if l := left(); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
}

// getPage returns what an address answers.
func getPage(t *testing.T, address string) []byte {
	t.Helper()
	page, err := testenv.Get(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	return page
}

// Ctrl-C ends the stream of campaigns as a success and leaves nothing behind.
func TestDemoEndsOnInterrupt(t *testing.T) {
	t.Parallel()
	cmd, stderr, left := demoProcess(t, "--json")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	var first struct {
		Audience int     `json:"audience"`
		Notified int     `json:"notified"`
		MS       float64 `json:"ms"`
	}
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &first) != nil || first.Audience == 0 || first.Notified != first.Audience || first.MS <= 0 {
		t.Errorf("first delivery %q", lines.Text())
	}
	refusesStrangers(t, cmd.Env)
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() { // Wait wants the pipe read to its end
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("ended with %v\n%s", err, stderr)
	}
	if l := left(); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
}

// refusesStrangers checks that another user of the machine, who can reach the
// demo's Postgres and cannot read its configuration, does not get in.
func refusesStrangers(t *testing.T, env []string) {
	t.Helper()
	var tmp string
	for _, v := range env {
		if dir, ok := strings.CutPrefix(v, "TMPDIR="); ok {
			tmp = dir // the last one counts
		}
	}
	found, err := filepath.Glob(filepath.Join(tmp, "dinnerbell-demo-*", "dinnerbell.yaml"))
	if err != nil || len(found) != 1 {
		t.Fatalf("configurations: %v, %v", found, err)
	}
	if info, err := os.Stat(found[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the configuration has mode %v, %v", info.Mode(), err)
	}
	text, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	var cfg struct {
		Source struct {
			URL string `json:"url"`
		} `json:"source"`
	}
	if err := json.Unmarshal(text, &cfg); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(cfg.Source.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range []*url.Userinfo{url.User("postgres"), url.UserPassword("postgres", "postgres")} {
		u.User = user
		conn, err := pgx.Connect(t.Context(), u.String())
		if err == nil {
			_ = conn.Close(t.Context())
		}
		if refused := (*pgconn.PgError)(nil); err == nil || errors.As(err, &refused) && refused.Code != "28P01" {
			t.Errorf("%s gets in, or fails otherwise: %v", user, err)
		}
	}
}
