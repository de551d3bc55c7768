package sink

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/id"
	"dinnerbell/stream/record"
)

// pipelineFixture is a connection with statements for its pipelines.
type pipelineFixture struct {
	*pgx.Conn
	db                          *envtest.DB
	begin, copy, hit, nap, done *Statement
}

var errMissed = errors.New("missed")

func newPipelineFixture(t *testing.T) *pipelineFixture {
	t.Helper()
	a := &pipelineFixture{db: envtest.Database(t)}
	a.db.Exec(`CREATE UNIQUE INDEX ON subscribers_feedback (adv_campaign_id, client_id); CREATE TABLE counter (n int8); INSERT INTO counter VALUES (0)`)
	conn, err := Config{URL: func() (string, error) { return a.db.URL, nil }}.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { CloseConn(conn) })
	a.Conn = conn
	q := newStepStatements(Config{Schema: "public", Table: "subscribers_feedback", DaemonSchema: "none"}.Tables(), ContractTable())
	a.begin, a.copy, a.done = q.begin, q.copy, q.commit
	a.hit = &Statement{Name: "count", SQL: ExpectRows("$2", `UPDATE public.counter SET n = n + 1 WHERE n = $1`), Meanings: OnMiss(errMissed)}
	a.nap = &Statement{Name: "nap", SQL: `SELECT pg_sleep(600)`}
	if err := Prepare(t.Context(), conn, a.begin, a.copy, a.done, a.hit, a.nap); err != nil {
		t.Fatal(err)
	}
	return a
}

// frames encodes feedback rows of one campaign for the clients.
func frames(t *testing.T, clients ...string) []byte {
	t.Helper()
	list := &id.List{}
	for _, c := range clients {
		list.Append(packID(t, c))
	}
	var f record.CopyStream
	f.Begin(nil, 0)
	f.Add(record.ContractKinds.NewTemplate(exampleCampaign(), 7), list)
	return f.End()
}

// expect checks the committed rows and the counter.
func (a *pipelineFixture) expect(t *testing.T, rows, counter int64) {
	t.Helper()
	var gotRows, gotCounter int64
	if err := a.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM public.subscribers_feedback), (SELECT n FROM public.counter)`).Scan(&gotRows, &gotCounter); err != nil {
		t.Fatal(err)
	}
	if gotRows != rows || gotCounter != counter {
		t.Errorf("%d rows and counter %d, want %d and %d", gotRows, gotCounter, rows, counter)
	}
}

// No statement behind a failed one runs, the commit neither, and the connection works
// again after a rollback.
func TestPipelineStopsAtTheFirstError(t *testing.T) {
	t.Parallel()
	a := newPipelineFixture(t)
	for _, c := range []struct {
		name    string
		clients []string
		n, want int64
		err     error
	}{
		{"nothing fails", []string{"a", "b"}, 0, 1, nil},
		{"a row is there already", []string{"c", "b"}, 1, 1, ErrRowRefused},
		{"a large COPY fails at its last row", append(listClients("0000", 3000), "a"), 1, 1, ErrRowRefused},
		{"nothing is hit", []string{"d"}, 0, 1, errMissed},
		{"more is hit than expected", []string{"e"}, 1, 0, errMissed},
	} {
		f := NewPipeline(time.Now().Add(patience), a.Conn)
		f.AddCommand(a.begin, "BEGIN")
		f.Copy(a.copy, frames(t, c.clients...), len(c.clients))
		f.Add(a.hit, c.n, c.want)
		f.AddCommand(a.done, "COMMIT")
		err := f.RoundTrip()
		if !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.name, err, c.err)
		}
		if c.err != nil {
			if _, err := a.Exec(t.Context(), "rollback"); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		a.expect(t, 2, 1)
	}
}

// Data of many CopyData messages arrives whole, whatever the cuts.
func TestPipelineCarriesLargeCopies(t *testing.T) {
	t.Parallel()
	a := newPipelineFixture(t)
	all := append(listClients("0000", 5000), strings.Repeat("long", 250), strings.Repeat("wide", 200))
	data := frames(t, all...)
	if len(data) < 10*record.CopyFrameSize {
		t.Fatalf("%d bytes are too few for the test", len(data))
	}
	f := NewPipeline(time.Now().Add(patience), a.Conn)
	f.Copy(a.copy, data, len(all))
	if err := f.RoundTrip(); err != nil { // without begin: the Sync commits
		t.Fatal(err)
	}
	a.expect(t, int64(len(all)), 0)
}

// A pipeline that is out of time, or whose context ends, returns at once and leaves a
// closed connection.
func TestPipelineEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		interrupted bool
		limit       time.Duration
		err         error
	}{
		"interrupted": {true, patience, net.ErrClosed},
		"out of time": {false, 50 * time.Millisecond, os.ErrDeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newPipelineFixture(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			defer CloseOnEnd(ctx, a.Conn)()
			if c.interrupted {
				time.AfterFunc(50*time.Millisecond, cancel)
			}
			f := NewPipeline(time.Now().Add(c.limit), a.Conn)
			f.AddCommand(a.begin, "BEGIN")
			f.Add(a.nap)
			f.AddCommand(a.done, "COMMIT")
			if err := f.RoundTrip(); !errors.Is(err, c.err) {
				t.Errorf("pipeline ended with %v, want %v", err, c.err)
			}
			if err := f.RoundTrip(); err == nil {
				t.Error("a second pipeline went through")
			}
		})
	}
}

// RoundTrip returns an error where the COMMIT of a failed transaction rolls back.
func TestPipelineSeesThatACommitRolledBack(t *testing.T) {
	t.Parallel()
	a := newPipelineFixture(t)
	f := NewPipeline(time.Now().Add(patience), a.Conn)
	f.AddCommand(a.begin, "BEGIN")
	f.Add(a.hit, 9, 1)
	if err := f.RoundTrip(); !errors.Is(err, errMissed) {
		t.Fatal(err)
	}
	f.AddCommand(a.done, "COMMIT")
	if err := f.RoundTrip(); err == nil || !strings.Contains(err.Error(), "ROLLBACK") {
		t.Errorf("commit of a failed transaction: %v", err)
	}
}
