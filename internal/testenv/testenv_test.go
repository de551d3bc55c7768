package testenv

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
)

// parentChild as the first argument turns the test binary into a process that
// starts a child, prints its pid and waits to be killed.
const parentChild = "testenv-parent"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == parentChild {
		os.Exit(runParent())
	}
	goleak.VerifyTestMain(m)
}

func runParent() int {
	child, err := StartChild(exec.Command("sleep", "600"), "", syscall.SIGKILL)
	if err != nil {
		return 1
	}
	if _, err := os.Stdout.WriteString(strconv.Itoa(child.PID()) + "\n"); err != nil {
		return 1
	}
	<-child.done
	return 0
}

// TestChildDiesWithParent: the kernel ends the child of a parent that was
// killed.
func TestChildDiesWithParent(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(self, parentChild)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 16)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
	if err != nil || !isAlive(child) {
		t.Fatalf("child %d is not alive (%v)", child, err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // "signal: killed"
	if err := awaitGone([]int{child}, 10*time.Second); err != nil {
		t.Error(err)
	}
}

// TestStartedServerThatExits: the error is ErrExited with the end of the log.
func TestStartedServerThatExits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := StartBroker(t.Context(), BrokerOptions{Dir: dir, Command: []string{"sh", "-c", "echo the reason >&2; exit 3"}})
	if !errors.Is(err, ErrExited) || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("StartBroker = %v, want ErrExited with the log", err)
	}
}

func TestParseVersion(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int{
		"postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)\n": 15,
		"postgres (PostgreSQL) 17.5\n":                           17,
		"postgres (PostgreSQL) 18beta1\n":                        18,
		"postgres (PostgreSQL) 19devel":                          19,
		"postgres (PostgreSQL) 9.6.24":                           9,
		"something else":                                         -1,
		"":                                                       -1,
	} {
		got, err := parseVersion(in)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("parseVersion(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
}

// TestFindInstalled: PATH comes first, then the newest match of the patterns;
// programs that are too old, incomplete or broken are skipped.
func TestFindInstalled(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	install := func(name, version string) string {
		t.Helper()
		dir := filepath.Join(root, name)
		if err := os.MkdirAll(dir, 0o750); err != nil {
			t.Fatal(err)
		}
		script := "#!/bin/sh\necho 'postgres (PostgreSQL) " + version + "'\n"
		for _, program := range []string{"initdb", "postgres"} {
			if err := os.WriteFile(filepath.Join(dir, program), []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	v13, v15, v9 := install("pg/13", "13.2"), install("pg/15", "15.1"), install("pg/9", "9.6")
	v14 := install("pg/14", "14.9")
	broken := install("pg/99", "99.1")
	if err := os.Remove(filepath.Join(broken, "initdb")); err != nil {
		t.Fatal(err)
	}
	path := strings.Join([]string{"", root, v13, v14, v15}, string(filepath.ListSeparator))
	for name, c := range map[string]struct {
		path     string
		patterns []string
		want     string
	}{
		"first good one of PATH": {path: path, want: v14},
		"newest of the patterns": {path: v9, patterns: []string{root + "/none/*", root + "/pg/*"}, want: v15},
		"only too old ones":      {path: v9, patterns: []string{v13}},
		"nothing":                {},
	} {
		got, err := findInstalled(c.path, c.patterns)
		if c.want == "" && !errors.Is(err, errNoPostgres) {
			t.Errorf("%s: %q, %v, want errNoPostgres", name, got, err)
		}
		if c.want != "" && got != c.want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
}

func TestPostgresBinIsAnOrder(t *testing.T) {
	t.Setenv("POSTGRES_BIN", t.TempDir())
	if dir, err := FindPostgres(t.Context(), t.TempDir()); err == nil {
		t.Errorf("FindPostgres = %s although $POSTGRES_BIN is empty", dir)
	}
}

func TestUnreachableFolderIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(dir, "in", "side")
	if err := os.MkdirAll(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	stranger := &serverUser{name: "stranger", uid: 54321, gid: 54321}
	if err := stranger.checkReach(inside); err == nil || !strings.Contains(err.Error(), "cannot enter "+dir+" ") {
		t.Errorf("checkReach = %v, want it to name %s", err, dir)
	}
}

func TestSocketDirFitsOrIsOff(t *testing.T) {
	t.Parallel()
	short := &Postgres{opts: PostgresOptions{Dir: "/tmp/x"}}
	long := &Postgres{opts: PostgresOptions{Dir: "/tmp/" + strings.Repeat("x", 90)}}
	if short.socketDir() != "/tmp/x/sockets" || long.socketDir() != "" {
		t.Errorf("socketDir = %q and %q", short.socketDir(), long.socketDir())
	}
}

// TestFetchPostgres downloads a Postgres because it finds none, starts it and
// runs a query. It needs the network and 20 seconds, so it runs on request.
func TestFetchPostgres(t *testing.T) {
	t.Parallel()
	if os.Getenv("TESTENV_FETCH") == "" {
		t.Skip("downloads: set TESTENV_FETCH=1")
	}
	dir, err := os.MkdirTemp("", "dinnerbell-fetch-") //nolint:usetesting // closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(dir, "cache")
	bin, err := findPostgres(t.Context(), "", nil, cache)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(bin, cache) {
		t.Errorf("fetched into %s, want below %s", bin, cache)
	}
	server, err := StartPostgres(t.Context(), PostgresOptions{Dir: filepath.Join(dir, "server"), BinDir: bin})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	}()
	conn, err := pgx.Connect(t.Context(), server.URL(""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	var version string
	if err := conn.QueryRow(t.Context(), "SHOW server_version").Scan(&version); err != nil {
		t.Fatal(err)
	}
	t.Logf("fetched and started Postgres %s", version)
	again, err := findPostgres(t.Context(), "", nil, cache)
	if err != nil || again != bin {
		t.Errorf("the second time: %s, %v, want %s", again, err, bin)
	}
	left, err := filepath.Glob(filepath.Join(cache, "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("the cache holds %v (%v), want one folder", left, err)
	}
}

func TestChildEnvironment(t *testing.T) {
	t.Parallel()
	got := ChildEnvironment([]string{"HOME=/x", "DINNERBELL_SOURCE_URL=real", "PGHOST=real", "POSTGRES_BIN=/y", "PATH=/z"})
	if want := []string{"HOME=/x", "POSTGRES_BIN=/y", "PATH=/z"}; !slices.Equal(got, want) {
		t.Errorf("ChildEnvironment = %v, want %v", got, want)
	}
}
