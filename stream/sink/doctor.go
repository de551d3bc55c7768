package sink

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

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
	x := &examination{facts: Facts{Cfg: cfg, T: cfg.Tables(), Lanes: lanes, ForDoctor: true, Key: key}}
	defer x.close()
	first := x.connect(ctx, limit)
	first.Name = connectionCheck
	report := precondition.Report{first}
	if first.Level == precondition.Fail {
		return append(report, precondition.NotMade(Preconditions, precondition.Everything, "no connection")...)
	}
	made, _ := precondition.RunOver(ctx, Preconditions, precondition.Everything, limit, x.open) // the report has the errors
	return append(report, made...)
}

// examination holds the one connection of an examination. A check that runs out of
// time loses it, and the next check opens another.
type examination struct {
	facts Facts
	gone  error // why there is no connection any more, or no catalogue
}

func (x *examination) close() {
	if x.facts.Conn != nil {
		CloseConn(x.facts.Conn)
	}
}

// connect makes the first connection, and returns the finding about it.
func (x *examination) connect(ctx context.Context, limit time.Duration) precondition.Finding {
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

// open returns the facts with a connection that works, and the catalogue.
func (x *examination) open(ctx context.Context) (f *Facts, err error) {
	if x.gone != nil {
		return nil, x.gone
	}
	defer func() { x.gone = err }()
	if x.facts.Conn.IsClosed() {
		if x.facts.Conn, err = x.facts.Cfg.Connect(ctx, "dinnerbell doctor"); err != nil {
			return nil, err
		}
	}
	if x.facts.Catalogue == nil {
		if x.facts.Catalogue, err = ReadCatalogue(ctx, x.facts.Conn, x.facts.T); err != nil {
			return nil, err
		}
	}
	return &x.facts, nil
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
