package takeover

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/precondition"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/topic"
)

// Preconditions makes the checks of a moment on the sink and the cluster. If
// a fact could not be read, the error gives the cause, and the report holds the checks
// that could be made.
func Preconditions(ctx context.Context, cfg Config, moment precondition.Moment) (precondition.Report, error) {
	cfg = cfg.WithDefaults()
	conn, err := cfg.Sink.Connect(ctx, "dinnerbell preconditions")
	if err != nil {
		return nil, err
	}
	defer sink.CloseConn(conn)
	return readPreconditions(ctx, cfg, moment, conn, nil)
}

// ReadPreconditions is Preconditions over a connection to the sink.
func ReadPreconditions(ctx context.Context, cfg Config, moment precondition.Moment, conn *pgx.Conn) (precondition.Report, error) {
	return readPreconditions(ctx, cfg, moment, conn, nil)
}

// systemFacts are the facts that were read of both systems before the checks.
type systemFacts struct {
	cluster   *topic.Cluster
	catalogue *sink.Catalogue
}

// readPreconditions makes the checks of both systems, the sink's first, over a
// connection to the sink and a client of its own to Kafka. It keeps the facts that
// it has read in *found, unless that is nil.
func readPreconditions(ctx context.Context, cfg Config, moment precondition.Moment, conn *pgx.Conn, found *systemFacts) (precondition.Report, error) {
	client, err := cfg.Kafka.NewClient()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	k, err := readCluster(ctx, cfg, client, moment)
	if err != nil {
		return nil, err
	}
	s := &sink.Facts{Cfg: cfg.Sink, T: cfg.Sink.Tables(), Conn: conn, Lanes: len(k.Cluster.Topics[cfg.Kafka.Campaigns].Partitions)}
	if s.Catalogue, err = readCatalogue(ctx, cfg, conn); err != nil {
		return nil, err
	}
	if found != nil {
		found.cluster, found.catalogue = k.Cluster, s.Catalogue
	}
	report, err := precondition.Run(ctx, sink.Preconditions, moment, s)
	ofKafka, kafkaErr := precondition.Run(ctx, topic.Preconditions, moment, k)
	return append(report, ofKafka...), cmp.Or(err, kafkaErr)
}

func readCluster(ctx context.Context, cfg Config, client *kgo.Client, moment precondition.Moment) (*topic.Facts, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.SinkTimeout)
	defer cancel()
	return topic.ReadFacts(ctx, client, cfg.Kafka, moment)
}

func readCatalogue(ctx context.Context, cfg Config, conn *pgx.Conn) (*sink.Catalogue, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.SinkTimeout)
	defer cancel()
	return sink.ReadCatalogue(ctx, conn, cfg.Sink.Tables())
}

// haltOf returns the halt for a violated precondition. Lane -1 stands for all lanes.
func haltOf(violation *precondition.UnmetError, lane int32) *halt.Error {
	f := violation.Finding
	f.Fix = ""
	return &halt.Error{Part: halt.Stream, Lane: lane, What: f.String(), Hint: violation.Fix + "; then start again"}
}

// setupMends reports whether a violation is about what `dinnerbell setup` makes: a
// check that is not made at setup is about that.
func setupMends(e *precondition.UnmetError) bool {
	return slices.ContainsFunc(sink.Preconditions, func(c precondition.Check[*sink.Facts]) bool {
		return c.Name == e.Name && c.At&precondition.AtSetup == 0
	}) ||
		slices.ContainsFunc(topic.Preconditions, func(c precondition.Check[*topic.Facts]) bool {
			return c.Name == e.Name && c.At&precondition.AtSetup == 0
		})
}

// CheckPreconditions makes the checks of a moment for a command. It returns the
// warnings, one line each, and a *halt.Error for a precondition that does not hold.
func CheckPreconditions(ctx context.Context, cfg Config, moment precondition.Moment) (warnings []string, err error) {
	report, err := Preconditions(ctx, cfg, moment)
	for _, f := range slices.Concat(report.At(precondition.Warn), report.At(precondition.Unknown)) {
		warnings = append(warnings, "warning: "+f.String())
	}
	err = report.Unmet(err)
	if unmet, ok := errors.AsType[*precondition.UnmetError](err); ok {
		err = haltOf(unmet, halt.AllLanes)
	}
	return warnings, err
}

// UnmetPatience is how long a precondition may be violated before a lane or the daemon
// halts: a migration takes several statements.
const UnmetPatience = time.Minute

// ViolationWatch remembers which precondition is violated, and since when.
type ViolationWatch struct {
	name  string
	since time.Time
}

// HaltIfLasting returns err, or a halt in its place if err is a precondition that has
// been violated for longer than patience. The daemon waits without end for objects that
// `dinnerbell setup` creates: a deployment may start the daemon first.
func (w *ViolationWatch) HaltIfLasting(err error, lane int32, patience time.Duration) error {
	violation, ok := errors.AsType[*precondition.UnmetError](err)
	if !ok {
		*w = ViolationWatch{}
		return err
	}
	if violation.Name != w.name {
		*w = ViolationWatch{name: violation.Name, since: time.Now()}
	}
	if setupMends(violation) || time.Since(w.since) < patience {
		return err
	}
	return haltOf(violation, lane)
}
