package tablecopy

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/cdc/source"
	"dinnerbell/internal/precondition"
)

// What Postgres refuses has one statement that mends it: a GRANT does not lift row-level
// security.
func TestRefusedCopyHasAStatement(t *testing.T) {
	t.Parallel()
	db, err := source.Open(source.Config{
		URL: func() (string, error) { return "postgres://bell@127.0.0.1/de", nil }, Schema: "public", Table: "t",
		KeyColumns: []string{"id"}, ClientColumn: "c", RestaurantColumn: "r", Publication: "p", Slot: "s",
	})
	if err != nil {
		t.Fatal(err)
	}
	for message, want := range map[string]string{
		"permission denied for table t":                                      `GRANT SELECT ON "public"."t" TO "bell"`,
		`query would be affected by row-level security policy for table "t"`: `ALTER ROLE "bell" BYPASSRLS`,
	} {
		err := (&tableCopy{db: db}).explainError(&pgconn.PgError{Code: source.CodeInsufficientPrivilege, Message: message})
		halted, ok := errors.AsType[*source.HaltError](err)
		if !ok {
			t.Fatalf("%s: %v", message, err)
		}
		if got := precondition.SplitRemedy(halted.Err.Hint); len(got.Statements) != 1 || got.Statements[0] != want || got.Advice != "" {
			t.Errorf("%s: %+v, want %s", message, got, want)
		}
	}
}
