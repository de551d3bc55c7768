package sink

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"dinnerbell/state/id"
)

// A connection that the server ends in the middle of a guarded insertion is an error, and
// the error says why it was ended.
func TestGuardedInsertionOverAConnectionThatIsEnded(t *testing.T) {
	t.Parallel()
	_, in := newGuardedInsertion(t, `CREATE FUNCTION ends() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN
  IF NEW.client_id LIKE ''00000007%'' THEN RAISE EXCEPTION ''not this one''; END IF;
  IF NEW.client_id LIKE ''00000020%'' THEN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(10); END IF; RETURN NEW; END';
CREATE TRIGGER ends BEFORE INSERT ON subscribers_feedback FOR EACH ROW EXECUTE FUNCTION ends()`)
	list := &id.List{}
	for _, text := range listClients("0000", 64) {
		list.Append(packID(t, text))
	}
	err := pgx.BeginFunc(t.Context(), in.Conn, func(pgx.Tx) error { return in.Write(t.Context(), list) })
	if err == nil || !strings.Contains(err.Error(), "57P01") {
		t.Errorf("error %v, want the one with which the server ended the connection", err)
	}
}
