package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// An error of a connection names the mending command, once, where the error tells it.
func TestAddFixNamesTheMendingCommand(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		raw  string
		err  error
		want string // "": the error stays as it is
	}{
		{"postgres://bell:x@127.0.0.1:1/de", nil, "start Postgres, or correct host and port in sink.url"},
		{"postgres://bell:x@no-such-host.invalid:1/de", nil, "correct the host in sink.url"},
		{"postgres://bell:x@h/de", &pgconn.PgError{Code: "28P01"}, "correct the password in sink.url"},
		{"postgres://bell:x@h/de", &pgconn.PgError{Code: "3D000"}, `CREATE DATABASE "de"`},
		{"postgres://bell:x@h/de", &pgconn.PgError{Code: "42501"}, `GRANT CONNECT ON DATABASE "de" TO "bell"`},
		{"postgres://bell:x@h/de", &pgconn.PgError{Code: "57P03"}, ""},
		{"postgres://bell:x@h/de?sslmode=require", errors.New(refusedTLS), "set sslmode=disable in sink.url"},
		{"postgres://bell:x@h/de", &notPostgresError{"HTTP"}, "see what listens at host and port of sink.url"},
		{"postgres://bell:x@h/de", io.ErrUnexpectedEOF, "see what listens at host and port of sink.url"},
		{"postgres://bell:x@h/de", fmt.Errorf("pin settings: %w", &pgproto3.ExceededMaxBodyLenErr{}), "see what listens at host and port of sink.url"},
		{"postgres://bell:x@h/de", context.DeadlineExceeded, "through (sink.url)"},
		{"postgres://bell:x@h/de", errors.New("something else"), ""},
	} {
		o, err := Parse(tc.raw)
		if err != nil {
			t.Fatal(err)
		}
		cause := tc.err
		if cause == nil {
			cause = connectError(t, tc.raw)
		}
		got := AddFix(cause, &o.Config, "sink.url")
		if !errors.Is(got, cause) || !strings.Contains(got.Error(), tc.want) || (tc.want == "") != (got.Error() == cause.Error()) || strings.Count(got.Error(), "to mend") > 1 {
			t.Errorf("%v: got %v, want %q", cause, got, tc.want)
		}
	}
}
