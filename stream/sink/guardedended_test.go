package sink

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/id"
)

// A connection that the server ends in the middle of a guarded insertion is an error, and
// the error says why it was ended.
func TestGuardedInsertionOverAConnectionThatIsEnded(t *testing.T) {
	t.Parallel()
	db := envtest.Database(t)
	cfg := Config{URL: func() (string, error) { return db.URL, nil }, Schema: "public", Table: "subscribers_feedback", DaemonSchema: "dinnerbell"}
	if _, err := Setup(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	db.Exec(`CREATE FUNCTION ends() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN
  IF NEW.client_id LIKE ''00000007%'' THEN RAISE EXCEPTION ''not this one''; END IF;
  IF NEW.client_id LIKE ''00000020%'' THEN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(10); END IF; RETURN NEW; END'`)
	db.Exec(`CREATE TRIGGER ends BEFORE INSERT ON subscribers_feedback FOR EACH ROW EXECUTE FUNCTION ends()`)
	conn, err := cfg.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer CloseConn(conn)
	found, err := ReadCatalogue(t.Context(), conn, cfg.Tables())
	if err != nil {
		t.Fatal(err)
	}
	list := &id.List{}
	for _, text := range listClients("0000", 64) {
		list.Append(packID(t, text))
	}
	in := &Insertion{Conn: conn, Tables: cfg.Tables(), Table: found.Feedback, Campaign: exampleCampaign(), Trigger: 7, Guarded: true, Taken: true}
	err = pgx.BeginFunc(t.Context(), conn, func(pgx.Tx) error { return in.Write(t.Context(), list) })
	if err == nil || !strings.Contains(err.Error(), "57P01") {
		t.Errorf("error %v, want the one with which the server ended the connection", err)
	}
}
