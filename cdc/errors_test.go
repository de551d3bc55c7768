package cdc

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/cdc/replication"
	"dinnerbell/cdc/source"
)

// An error that does not concern the connection is not logged as one that does.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want bool
	}{
		{fmt.Errorf("receive WAL: %w", io.ErrUnexpectedEOF), true},
		{&pgconn.PgError{Code: "57P01", Message: "terminating connection due to administrator command"}, true},
		{replication.ErrSilent, true},
		{&pgconn.PgError{Code: "53400", Message: "all replication slots are in use"}, false},
		{&pgconn.PgError{Code: "53300", Message: "too many connections"}, false},
		{fmt.Errorf("load rows: %w", syscall.ENOSPC), false},
		{errors.New("the disk has no room for a snapshot"), false},
	} {
		if got := isUnreachable(c.err); got != c.want {
			t.Errorf("%v: %t", c.err, got)
		}
	}
	db, err := source.Open(source.Config{
		URL: func() (string, error) { return "postgres://u@127.0.0.1:1/de", nil }, Schema: "s", Table: "t",
		KeyColumns: []string{"i"}, ClientColumn: "c", RestaurantColumn: "r", Publication: "p", Slot: "s",
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.DialSQL(t.Context()); err == nil || !isUnreachable(err) {
		t.Errorf("%v: reachable", err)
	}
}
