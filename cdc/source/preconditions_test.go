package source

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/halt"
)

// A server that is too old is recognised by the settings that it does not know.
func TestOldServerIsRefused(t *testing.T) {
	t.Parallel()
	if found := checkVersion(&checkFacts{cat: &Catalog{Version: 13_21_00}}); len(found) != 1 || !strings.Contains(haltOnViolation(found[0]).Err.What, "Postgres 13, older than 14") {
		t.Errorf("version 13 gives %+v", found)
	}
	db := &DB{}
	err := db.explainConnectError(&pgconn.Config{}, &pgconn.PgError{Severity: "FATAL", Code: CodeUndefinedObject, Message: `unrecognized configuration parameter "idle_session_timeout"`})
	if h, ok := errors.AsType[*halt.Error](err); !ok || !strings.Contains(h.What, "older than Postgres 14") || h.Hint == "" {
		t.Errorf("the refusal of a setting gives %v", err)
	}
}
