package sink

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/pgsession"
	"dinnerbell/internal/postgres"
	"dinnerbell/internal/precondition"
	"dinnerbell/stream/record"
)

// connectionCheck is the name of the finding about the connection, which comes first.
const connectionCheck = "sink.connection"

// Examine makes every check of the sink for `doctor`, each within limit. A check that
// cannot be made is Unknown; the others are made all the same. key is the configuration
// key of the address. lanes is the number of partitions of the campaigns topic; 0:
// unknown.
func Examine(ctx context.Context, cfg Config, key string, lanes int, limit time.Duration) precondition.Report {
	// The server ends what takes too long, and the connection stays.
	cfg.Pins = []pgsession.Setting{{Name: "lock_timeout", Value: formatMilliseconds(limit / 2)}, {Name: "statement_timeout", Value: formatMilliseconds(limit * 8 / 10)}}
	x := &examination{facts: Facts{Cfg: cfg, T: cfg.Tables(), Lanes: lanes, ForDoctor: true, Key: key}}
	defer x.closeConn()
	first := x.connectFirst(ctx, limit)
	first.Name = connectionCheck
	report := precondition.Report{first}
	if first.Level == precondition.Fail {
		return append(report, precondition.NotMade(Preconditions, precondition.Everything, "no connection")...)
	}
	x.readCatalogue(ctx, limit)
	made, _ := precondition.RunOver(ctx, Preconditions, precondition.Everything, limit, x.ensureFacts) // the report has the errors
	return append(report, made...)
}

// examination holds the one connection of an examination. A check that runs out of
// time loses it, and the next check opens another.
type examination struct {
	facts Facts
	gone  error // why there is no connection any more
}

func (x *examination) closeConn() {
	if x.facts.Conn != nil {
		CloseConn(x.facts.Conn)
	}
}

// connectFirst makes the first connection, and returns the finding about it.
func (x *examination) connectFirst(ctx context.Context, limit time.Duration) precondition.Finding {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	o, configErr := x.facts.Cfg.connConfig("dinnerbell doctor")
	conn, err := x.facts.Cfg.Connect(ctx, "dinnerbell doctor")
	if err != nil {
		return postgres.NoConnection(context.WithoutCancel(ctx), errors.Join(err, configErr), o, x.facts.Key)
	}
	x.facts.Conn = conn
	began := time.Now()
	if err := conn.Ping(ctx); err != nil {
		return precondition.Finding{Level: precondition.Fail, Object: x.facts.Key, Found: "the server does not answer: " + err.Error(), Effect: "nothing works"}
	}
	return precondition.Finding{Object: x.facts.Key, Found: postgres.Describe(conn.PgConn(), o, time.Since(began))}
}

// formatMilliseconds writes a duration as a setting.
func formatMilliseconds(d time.Duration) string { return fmt.Sprintf("%dms", d.Milliseconds()) }

// readCatalogue reads the facts about the feedback table. Without them, as while the
// table is locked, the checks of other facts are made all the same.
func (x *examination) readCatalogue(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	x.facts.Catalogue, x.facts.unread = ReadCatalogue(ctx, x.facts.Conn, x.facts.T)
	if pgErr, ok := errors.AsType[*pgconn.PgError](x.facts.unread); ok && pgErr.Code == codeLockNotAvailable {
		x.facts.unread = fmt.Errorf("%w: another transaction has locked the table, see: SELECT pid, state, query FROM pg_stat_activity WHERE pid IN (SELECT pid FROM pg_locks WHERE granted AND relation = '%s'::regclass)", x.facts.unread, x.facts.T.Feedback)
	}
}

// codeLockNotAvailable is the SQLSTATE of a statement that waited for a lock too long.
const codeLockNotAvailable = "55P03"

// ensureFacts returns the facts with a connection that works.
func (x *examination) ensureFacts(ctx context.Context) (f *Facts, err error) {
	if x.gone == nil && x.facts.Conn.IsClosed() {
		x.facts.Conn, x.gone = x.facts.Cfg.Connect(ctx, "dinnerbell doctor")
	}
	return &x.facts, x.gone
}

// What checks that have no finding show.

func (f *Facts) showColumns() string {
	var other []string // than the contract's
	for i, name := range record.ColumnNames {
		if typ := f.Catalogue.columns[name].typ; typ != ContractTable().types[i].sql {
			other = append(other, name+" "+typ)
		}
	}
	if len(other) == 0 {
		return fmt.Sprintf("all %d, with the expected types", len(record.ColumnNames))
	}
	return fmt.Sprintf("all %d; of another type that works: %s", len(record.ColumnNames), strings.Join(other, ", "))
}

func (f *Facts) showSequences() string {
	if len(f.Catalogue.denied) > 0 {
		return "" // a role without the right does not see how many are used
	}
	var all []string
	for _, s := range f.Catalogue.sequence {
		all = append(all, fmt.Sprintf("%s: %d of %d numbers used", s.column, s.last, s.limit))
	}
	return strings.Join(all, ", ")
}
