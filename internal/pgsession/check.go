package pgsession

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/precondition"
)

// Unpinned returns the settings that the session does not have at the values of the
// list, one text each. It returns none where the server obeyed Startup and SQL.
func Unpinned(ctx context.Context, conn *pgx.Conn, settings []Setting) ([]string, error) {
	want := map[string]string{}
	names := make([]string, 0, len(settings))
	for _, s := range settings {
		if !strings.HasPrefix(s.Name, "tcp_") { // they read as 0 over a Unix socket
			want[s.Name], names = s.Value, append(names, s.Name)
		}
	}
	rows, err := conn.Query(ctx, `SELECT n, v FROM (SELECT n, pg_catalog.current_setting(n, true) AS v FROM pg_catalog.unnest($1::text[]) AS n) AS s WHERE v IS NOT NULL`, names)
	if err != nil {
		return nil, fmt.Errorf("read settings of the session: %w", err)
	}
	var found []string
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		asASCII := name == "client_encoding" && value == "SQL_ASCII" // see SQL
		if value != want[name] && !asASCII {
			found = append(found, fmt.Sprintf("%s is %q, not %q", name, value, want[name]))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read settings of the session: %w", err)
	}
	return found, nil
}

// Overridden describes the settings that the role or the database gives to sessions:
// those that dinnerbell's connections pin, and others.
func Overridden(ctx context.Context, conn *pgx.Conn, settings []Setting) (pinned, others []string, err error) {
	rows, err := conn.Query(ctx, `
		SELECT pg_catalog.split_part(c.setting, '=', 1)
		FROM pg_catalog.pg_db_role_setting s CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS c (setting)
		WHERE s.setrole IN (0, (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = session_user))
		  AND s.setdatabase IN (0, (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()))
		ORDER BY 1`)
	if err != nil {
		return nil, nil, fmt.Errorf("read settings of role and database: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, nil, fmt.Errorf("read settings of role and database: %w", err)
	}
	for _, name := range slices.Compact(names) {
		if slices.ContainsFunc(settings, func(s Setting) bool { return strings.EqualFold(s.Name, name) }) {
			pinned = append(pinned, name)
		} else {
			others = append(others, name)
		}
	}
	return pinned, others, nil
}

// Check makes a finding of each fact about the session's settings: that the server has
// other values than the pinned ones, that the role sets another role, or that role and
// database have settings which have no effect on the pinned ones. key is the
// configuration key of the address.
func Check(ctx context.Context, conn *pgx.Conn, settings []Setting, key string) ([]precondition.Finding, error) {
	unpinned, err := Unpinned(ctx, conn, settings)
	if err != nil {
		return nil, err
	}
	pinned, others, err := Overridden(ctx, conn, settings)
	if err != nil {
		return nil, err
	}
	var found []precondition.Finding
	if len(unpinned) > 0 {
		found = append(found, precondition.Finding{Level: precondition.Fail, Object: key, Found: strings.Join(unpinned, ", "),
			Effect: "values would read or be written otherwise than stored", Fix: "name Postgres itself in " + key + ": a pooler or a login trigger there drops the settings that dinnerbell pins"})
	}
	if slices.Contains(others, "role") {
		user := pgx.Identifier{conn.Config().User}.Sanitize()
		found = append(found, precondition.Finding{Level: precondition.Warn, Object: key, Found: "role " + user + " becomes another role at its login",
			Effect: "the rights of the other role count, and those granted to " + user + " do not", Fix: "ALTER ROLE " + user + " RESET role"})
	}
	if len(found) > 0 {
		return found, nil
	}
	text := fmt.Sprintf("all %d pinned", len(settings))
	if len(pinned) > 0 {
		text += "; those of role and database have no effect: " + strings.Join(pinned, ", ")
	}
	if len(others) > 0 {
		text += "; left as role and database set them: " + strings.Join(others, ", ")
	}
	return []precondition.Finding{{Level: precondition.OK, Found: text}}, nil
}
