package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/pgsession"
	"dinnerbell/internal/postgres"
	"dinnerbell/internal/precondition"
	"dinnerbell/stream/record"
)

// doctorChecks are the facts that stop nothing, or that cost too much for a start:
// `doctor` alone reports them.
var doctorChecks = []precondition.Check[*Facts]{
	{Name: "sink.feedback.duplicates", At: precondition.AtDoctor, Read: checkDuplicates},
	{Name: "sink.feedback.constraints", At: precondition.AtDoctor, Read: checkConstraints},
	{Name: "sink.feedback.lengths", At: precondition.AtDoctor, Read: onFeedbackTable((*Catalogue).checkLengths)},
	{Name: "sink.primary", At: precondition.AtDoctor, Read: checkPrimary},
	{Name: "sink.encryption", At: precondition.AtDoctor, Read: checkEncryption},
	{Name: "sink.settings", At: precondition.AtDoctor, Read: checkSettings},
	{Name: "sink.clock", At: precondition.AtDoctor, Read: checkClock},
	{Name: "sink.durability", At: precondition.AtDoctor, Read: checkDurability},
	{Name: "sink.standbys", At: precondition.AtDoctor, Read: checkStandbys},
}

func newWarning(object, found, effect, fix string) precondition.Finding {
	return precondition.Finding{Level: precondition.Warn, Object: object, Found: found, Effect: effect, Fix: fix}
}

// newFact returns a list of one finding that nothing is wrong with.
func newFact(format string, args ...any) []precondition.Finding {
	return []precondition.Finding{{Level: precondition.OK, Found: fmt.Sprintf(format, args...)}}
}

func checkEncryption(_ context.Context, f *Facts) ([]precondition.Finding, error) {
	o, err := f.Cfg.connConfig("dinnerbell doctor")
	if err != nil {
		return nil, err
	}
	return postgres.CheckEncryption(f.Conn.PgConn(), o, f.Key), nil
}

// checkSettings compares the settings of the session with those that a lane has.
func checkSettings(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	ofLanes := slices.DeleteFunc(slices.Clone(sessionSettings), func(s pgsession.Setting) bool {
		return slices.ContainsFunc(f.Cfg.Pins, func(pin pgsession.Setting) bool { return pin.Name == s.Name })
	})
	return pgsession.Check(ctx, f.Conn, ofLanes, f.Key)
}

// checkPrimary refuses a server that takes no writes.
func checkPrimary(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	var standby bool
	if err := f.Conn.QueryRow(ctx, `SELECT pg_catalog.pg_is_in_recovery()`).Scan(&standby); err != nil || !standby {
		return nil, err
	}
	missing := newFailure("it is a standby", "it takes no writes", "name all servers in "+f.Key+": postgres://…@db1:5432,db2:5432/…?target_session_attrs=read-write")
	missing.Object = "the sink's server"
	return []precondition.Finding{missing}, nil
}

// checkClock compares this machine's clock with the server's.
func checkClock(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	now := time.Now
	if f.Now != nil {
		now = f.Now
	}
	skew, off, err := ClockSkew(ctx, f.Conn, now)
	if err != nil {
		return nil, err
	}
	way := "ahead of"
	if skew < 0 {
		way = "behind"
	}
	text := fmt.Sprintf("this machine's clock is %s %s the server's, give or take %s", skew.Abs().Round(time.Millisecond), way, max(off, time.Millisecond).Round(time.Millisecond))
	if skew.Abs()-off <= MaxSkew {
		return newFact("%s", text), nil
	}
	return []precondition.Finding{newWarning("", text, "campaigns start and end by this machine's clock: early, late or never",
		"on the machine whose clock is wrong: timedatectl set-ntp true; then restart the daemon")}, nil
}

// checkDurability warns of a server that forgets commits when its machine crashes.
func checkDurability(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	var found []precondition.Finding
	for _, setting := range []string{"fsync", "full_page_writes"} {
		var value string
		if err := f.Conn.QueryRow(ctx, `SELECT pg_catalog.current_setting($1)`, setting).Scan(&value); err != nil {
			return nil, err
		}
		if value == "off" {
			found = append(found, newWarning("the sink's server", setting+" is off", "a crash of its machine can lose or spoil what was committed; then lanes halt or clients are notified again",
				"ALTER SYSTEM SET "+setting+" = on; SELECT pg_reload_conf()"))
		}
	}
	if len(found) == 0 {
		return newFact("fsync and full_page_writes are on; sessions of dinnerbell use synchronous_commit on"), nil
	}
	return found, nil
}

// checkStandbys looks whether commits wait for a standby that is not there, and whether
// a failover to a standby loses commits.
func checkStandbys(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	var names string
	var visible bool
	var synchronous, slots int
	err := f.Conn.QueryRow(ctx, `
SELECT pg_catalog.current_setting('synchronous_standby_names'), pg_catalog.pg_has_role(session_user, 'pg_read_all_stats', 'USAGE'),
  (SELECT count(*) FROM pg_catalog.pg_stat_replication WHERE sync_state IN ('sync', 'quorum')),
  (SELECT count(*) FROM pg_catalog.pg_replication_slots WHERE slot_type = 'physical' AND active)`).Scan(&names, &visible, &synchronous, &slots)
	object := "the sink's server"
	switch {
	case err != nil:
		return nil, err
	case names == "" && slots > 0:
		return []precondition.Finding{newWarning(object, fmt.Sprintf("%d standbys follow it, and synchronous_standby_names is empty", slots), "a failover can lose the last commits; then the lanes halt",
			"ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (standby1, standby2)'; SELECT pg_reload_conf(); -- with the standbys' names")}, nil
	case names == "":
		return newFact("none"), nil
	case !visible:
		return []precondition.Finding{{Level: precondition.Unknown, Object: object, Found: "the role may not see whether a standby of synchronous_standby_names = '" + names + "' is there",
			Effect: "without one each commit waits", Fix: "GRANT pg_read_all_stats TO " + f.Catalogue.role}}, nil
	case synchronous == 0:
		missing := newFailure("no standby of synchronous_standby_names = '"+names+"' is there", "each commit waits, and no campaign is decided",
			"ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf(); -- or start the standby")
		missing.Object = object
		return []precondition.Finding{missing}, nil
	}
	return newFact("%d synchronous", synchronous), nil
}

// checkDuplicates looks for the rows that keep `setup` from creating the unique index.
func checkDuplicates(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	if there, err := f.hasFeedbackTable(); !there {
		return nil, err
	}
	index, err := FindUniqueIndex(ctx, f.Conn, f.T)
	if err != nil || index != "" {
		return nil, err
	}
	list := "SELECT adv_campaign_id, client_id, count(*) FROM " + f.T.Feedback + " GROUP BY 1, 2 HAVING count(*) > 1"
	var pairs int64
	err = f.Conn.QueryRow(ctx, "SELECT count(*) FROM ("+list+") AS twice").Scan(&pairs)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == codeQueryCanceled {
		return []precondition.Finding{{Level: precondition.Unknown, Object: "feedback table " + f.T.Feedback,
			Found: "whether rows stand in the way of the unique index takes too long to find out", Effect: "setup finds out", Fix: list}}, nil
	}
	if err != nil || pairs == 0 {
		return nil, err
	}
	twice := newFailure(fmt.Sprintf("%d pairs of campaign and client have more than one row", pairs), "setup cannot create the unique index", list+"; "+f.keepOneSQL())
	twice.Object = "feedback table " + f.T.Feedback
	return []precondition.Finding{twice}, nil
}

// codeQueryCanceled is the SQLSTATE of a statement that ran out of time.
const codeQueryCanceled = "57014"

// keepOneSQL returns the statement that keeps one row of each pair: one with feedback,
// else the oldest.
func (f *Facts) keepOneSQL() string {
	first := "trigger_datetime_created"
	if f.Catalogue.Feedback.HasFeedback {
		first = "feedback IS NULL, " + first
	}
	return "DELETE FROM " + f.T.Feedback + " WHERE (tableoid, ctid) IN (SELECT t, c FROM (SELECT tableoid AS t, ctid AS c, row_number() OVER (PARTITION BY adv_campaign_id, client_id ORDER BY " +
		first + ", ctid) AS n FROM " + f.T.Feedback + ") AS numbered WHERE n > 1); -- keeps of each pair the row with feedback, else the oldest; then: dinnerbell setup"
}

// checkConstraints warns of constraints by which the table refuses notifications.
func checkConstraints(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	if there, err := f.hasFeedbackTable(); !there {
		return nil, err
	}
	rows, err := f.Conn.Query(ctx, `
SELECT k.contype::text, k.conname::text, pg_catalog.pg_get_constraintdef(k.oid), '{}'::text[], pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', $2::text, k.conname)
FROM pg_catalog.pg_constraint k WHERE k.conrelid = $1 AND k.contype IN ('c', 'f', 'x')
UNION ALL
SELECT 'u', c.relname::text, '', ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])),
  coalesce((SELECT pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', $2::text, k.conname) FROM pg_catalog.pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('u', 'p')),
    pg_catalog.format('DROP INDEX %I.%I', n.nspname, c.relname))
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid
ORDER BY 1, 2`, f.Catalogue.Feedback.OID, f.T.Feedback)
	if err != nil {
		return nil, err
	}
	var found []precondition.Finding
	var kind, name, definition, drop string
	var columns []string
	_, err = pgx.ForEachRow(rows, []any{&kind, &name, &definition, &columns, &drop}, func() error {
		const refused = "a client whose row it refuses is left out and named in a dead letter"
		switch kind {
		case "c":
			found = append(found, newWarning("", "constraint "+name+": "+definition, "a campaign or a client whose row it refuses becomes a dead letter", drop))
		case "f", "x":
			found = append(found, newWarning("", "constraint "+name+": "+definition, refused, drop))
		case "u":
			if refusesNotifications(columns) {
				found = append(found, newWarning("", "unique index "+name+" on ("+strings.Join(columns, ", ")+")", "a second notification with the same values is refused, and its client is left out", drop))
			}
		}
		return nil
	})
	for i := range found {
		found[i].Object = "feedback table " + f.T.Feedback
	}
	return found, err
}

// refusesNotifications reports whether a unique index over the columns refuses rows
// that the index over campaign and client accepts.
func refusesNotifications(columns []string) bool {
	ofRow := func(name string) bool { return slices.Contains(record.ColumnNames[:], name) }
	both := slices.Contains(columns, record.ColumnNames[record.CampaignColumn]) && slices.Contains(columns, record.ColumnNames[record.ClientColumn])
	return len(columns) > 0 && !both && !slices.ContainsFunc(columns, func(name string) bool { return !ofRow(name) })
}

// checkLengths warns of columns that are too short for some texts.
func (c *Catalogue) checkLengths() (found []precondition.Finding) {
	for i, name := range record.ColumnNames {
		k, there := c.columns[name]
		if limit := c.Feedback.types[i].limit; !there || limit == 0 || record.IsNumberColumn(i) {
			continue
		}
		effect := "a campaign with a longer text becomes a dead letter"
		if i == record.ClientColumn {
			effect = "a client with a longer id is left out and named in a dead letter"
		}
		found = append(found, newWarning("", "column "+name+" is "+k.typ, effect, c.alterTableSQL("ALTER COLUMN %s TYPE text", name)))
	}
	return found
}
