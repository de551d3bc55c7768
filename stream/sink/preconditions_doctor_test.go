package sink

import (
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/pgsession"
	"dinnerbell/internal/precondition"
)

// A clock that is wrong is found, whichever way, and a right one is not.
func TestWrongClockIsFound(t *testing.T) {
	t.Parallel()
	_, cfg := newSinkDatabase(t)
	conn, err := cfg.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer CloseConn(conn)
	for _, c := range []struct {
		ahead time.Duration
		level precondition.Level
		found string
	}{{0, precondition.OK, "give or take"}, {time.Hour, precondition.Warn, " ahead of the server's"}, {-time.Hour, precondition.Warn, " behind the server's"}} {
		facts := &Facts{Cfg: cfg, Conn: conn, Now: func() time.Time { return time.Now().Add(c.ahead) }}
		found, err := checkClock(t.Context(), facts)
		if err != nil || len(found) != 1 || found[0].Level != c.level || !strings.Contains(found[0].Found, c.found) {
			t.Errorf("ahead by %s: %+v, %v", c.ahead, found, err)
		}
	}
}

// A session without the pinned settings, as behind a pooler that drops them, is refused.
func TestSettingsThatAreNotPinnedAreFound(t *testing.T) {
	t.Parallel()
	_, cfg := newSinkDatabase(t)
	conn, err := cfg.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer CloseConn(conn)
	if _, err := conn.Exec(t.Context(), `SET "DateStyle" = 'SQL, DMY'; SET synchronous_commit = off`); err != nil {
		t.Fatal(err)
	}
	found, err := pgsession.Check(t.Context(), conn, sessionSettings, "sink.url")
	if err != nil || len(found) != 1 || found[0].Level != precondition.Fail || found[0].Found != `DateStyle is "SQL, DMY", not "ISO, YMD", synchronous_commit is "off", not "on"` {
		t.Errorf("%+v, %v", found, err)
	}
}

// A check that runs out of time loses the connection; the next one gets another.
func TestExaminationConnectsAgain(t *testing.T) {
	t.Parallel()
	_, cfg := newSinkDatabase(t)
	x := &examination{facts: Facts{Cfg: cfg, T: cfg.Tables()}}
	defer x.closeConn()
	if f := x.connectFirst(t.Context(), time.Minute); f.Level != precondition.OK {
		t.Fatal(f)
	}
	if err := x.facts.Conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	f, err := x.ensureFacts(t.Context())
	if err != nil || f.Conn.Ping(t.Context()) != nil {
		t.Errorf("%v", err)
	}
	if err := x.facts.Conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	x.facts.Cfg.URL = func() (string, error) { return "postgres://x@127.0.0.1:1/x", nil }
	if _, err := x.ensureFacts(t.Context()); err == nil {
		t.Error("a server that is gone gives a connection")
	}
	if _, again := x.ensureFacts(t.Context()); again == nil {
		t.Error("it is asked again and again")
	}
}
