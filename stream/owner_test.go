package stream

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/precondition"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/operator"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
)

// Every role that may connect can take any advisory lock; that must not hold up a lane.
func TestNobodyElsesLockHoldsALaneUp(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a", "b"}})
	conn, err := pgx.Connect(t.Context(), w.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.CloseConn(conn)
	if _, err := conn.Exec(t.Context(), `SELECT pg_advisory_lock(hashtext('"dinnerbell".lane'), 0); SELECT pg_advisory_lock(0)`); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	w.expect(map[string][]string{"c1": {"a", "b"}})
}

// A role that bears a daemon's name, but not its role, is no predecessor and no owner.
func TestOnlyTheOwnRoleCounts(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	role := "stranger_" + w.db.Name
	w.db.Exec(`CREATE ROLE ` + role + ` LOGIN`)
	t.Cleanup(func() {
		if _, err := w.db.Pool.Exec(context.Background(), `DROP ROLE `+role); err != nil {
			t.Errorf("drop role: %v", err)
		}
	})
	cfg, err := pgx.ParseConfig(w.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	s := takeover.New(w.cfg.Config, 0, takeover.Options{})
	cfg.User, cfg.RuntimeParams["application_name"] = role, s.LaneMark()+"stranger"
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.CloseConn(conn)
	if err := s.CheckNoOwner(t.Context()); err != nil {
		t.Error(err)
	}
	w.owner()
	if err := conn.Ping(t.Context()); err != nil {
		t.Errorf("the stranger's connection was ended: %v", err)
	}
}

// The functions that a hostile schema has are not called: the search path is pinned.
func TestSearchPathIsPinned(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	w.db.Exec(`CREATE SCHEMA evil; CREATE TABLE evil.called (n int);
CREATE FUNCTION evil.to_regclass(text) RETURNS regclass LANGUAGE plpgsql AS 'BEGIN INSERT INTO evil.called VALUES (1); RETURN NULL; END';
CREATE FUNCTION evil.unnest(text[]) RETURNS SETOF text LANGUAGE plpgsql AS 'BEGIN INSERT INTO evil.called VALUES (1); END'`)
	for _, setting := range []string{"search_path = evil, pg_catalog, public", "default_transaction_read_only = on", "statement_timeout = '1ms'", "DateStyle = 'German, DMY'", "standard_conforming_strings = off"} {
		w.db.Exec(`ALTER DATABASE ` + w.db.Name + ` SET ` + setting)
	}
	w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	w.expect(map[string][]string{"c1": {"a"}})
	c := w.campaign("c1", "r1")
	c.Content = "edited"
	w.produce(0, encodeCampaign(c), encodeCampaign(w.campaign("c2", "r1")))
	w.expect(map[string][]string{"c1": {"a"}, "c2": {"a"}})
	if n := w.db.Int(`SELECT count(*) FROM evil.called`); n != 0 {
		t.Errorf("functions of another schema were called %d times", n)
	}
}

// A server that lets us in and then answers nothing holds nobody up for ever.
func TestServerThatFallsSilentIsGivenUp(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if _, err := conn.Read(make([]byte, 8192)); err == nil {
			_, _ = conn.Write([]byte{'R', 0, 0, 0, 8, 0, 0, 0, 0, 'Z', 0, 0, 0, 5, 'I'}) // authenticated, ready
		}
		_, _ = io.Copy(io.Discard, conn) // until the client goes
		_ = conn.Close()
	}()
	cfg := sink.Config{URL: func() (string, error) {
		return "postgres://u@" + l.Addr().String() + "/de?sslmode=disable&connect_timeout=1", nil
	}}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := cfg.Connect(ctx, "test"); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "set up sink session") {
		t.Errorf("connect: %v", err)
	}
}

// resolve ends nobody's work: a lane that a daemon owns has halted, or has
// nothing to resolve.
func TestResolveRefusesALaneThatRuns(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	svc, stop := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	w.expect(map[string][]string{"c1": {"a"}})
	if _, err := operator.Resolve(t.Context(), w.cfg.Config, 0, operator.AcceptMissing); err == nil || !strings.Contains(err.Error(), "owned by a daemon that runs: dinnerbell") {
		t.Errorf("resolve: %v", err)
	}
	if epoch := svc.Status().Lanes[0].Epoch; epoch != 1 {
		t.Errorf("epoch %d: resolve has taken the lane over", epoch)
	}
	stop()
	if _, err := operator.Resolve(t.Context(), w.cfg.Config, 0, operator.AcceptMissing); err != nil {
		t.Error(err)
	}
}

// The lanes share their connections for reading, and sink.max_connections bounds all
// connections together.
func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 8, map[string][]string{"r1": {"a"}})
	want := map[string][]string{}
	deliver := func(round string) {
		for lane := range int32(8) {
			c := w.campaign(fmt.Sprint(round, lane), "r1")
			want[c.ID] = []string{"a"}
			w.produce(lane, encodeCampaign(c))
		}
	}
	ours := `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'dinnerbell %'`
	_, stop := w.start()
	deliver("c")
	w.expect(want)
	if n := w.db.Int(ours); n > 12 {
		t.Errorf("8 lanes hold %d connections, want one each and 4", n)
	}
	stop()

	w.cfg.Sink.MaxConnections = 6
	svc, stop := w.start()
	envtest.Until(t, patience, func() error {
		running, waiting := 0, 0
		for _, l := range svc.Status().Lanes {
			if l.State == "running" {
				running++
			}
			if strings.Contains(l.LastError, "sink.max_connections") {
				waiting++
			}
		}
		if running != 5 || waiting != 3 {
			return fmt.Errorf("%d lanes run and %d wait", running, waiting)
		}
		return nil
	})
	if n := w.db.Int(ours); n > 6 {
		t.Errorf("%d connections, want 6 at most", n)
	}
	stop()
	report, err := takeover.Preconditions(t.Context(), w.cfg.Config, precondition.AtStart)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(report.At(precondition.Warn), func(f precondition.Finding) bool { return f.Object == "sink.max_connections" }) {
		t.Error("no warning that lanes will wait")
	}
}
