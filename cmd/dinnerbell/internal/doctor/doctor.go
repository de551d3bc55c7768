// Package doctor gathers the checks of everything that `run` needs: the preconditions
// that the packages list for their foreign systems, and those of this machine.
package doctor

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"dinnerbell/cdc/source"
	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/cmd/dinnerbell/internal/kafkaconn"
	"dinnerbell/internal/precondition"
	"dinnerbell/state/statedir"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/topic"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Limit bounds each check.
const Limit = 5 * time.Second

// sectionLimit bounds all checks of one system: each of them may wait for Limit.
const sectionLimit = time.Minute

// Options are the inputs of the doctor.
type Options struct {
	Config *config.Config
	File   string     // the configuration file, as it was named; "": the default
	Env    config.Env // of the process
	Logger *slog.Logger
	Limit  time.Duration // of each check; 0: Limit
}

// Section is one system, with the findings about it.
type Section struct {
	Name   string // the prefix of the checks' names, without the dot
	Report precondition.Report
}

// Run makes every check. A system that does not answer delays the checks of another one
// only where they need its facts: the sink is examined once the number of lanes is
// known.
func Run(ctx context.Context, o Options) []Section {
	if o.Limit == 0 {
		o.Limit = Limit
	}
	d := examination{Options: o}
	d.running = findDaemon(ctx, o.Config.State.Dir)
	first := d.runBounded(ctx, func(ctx context.Context) { d.source = d.examineSource(ctx) }, func(ctx context.Context) { d.kafka = d.examineKafka(ctx) })
	first.Wait()
	var ofSink, ofMachine precondition.Report
	second := d.runBounded(ctx, func(ctx context.Context) { ofSink = d.examineSink(ctx) }, func(ctx context.Context) { ofMachine = d.examineMachine(ctx) })
	second.Wait()
	sections := []Section{
		{"configuration", d.describeConfiguration()}, {"source", d.source.Report}, {"sink", ofSink}, {"kafka", d.kafka.Report}, {"machine", ofMachine},
	}
	for _, s := range sections {
		for i := range s.Report {
			d.hideSecrets(&s.Report[i])
		}
	}
	return sections
}

// examination is one run of the doctor.
type examination struct {
	Options

	running runningDaemon
	source  source.Examination
	kafka   topic.Examination
}

// runBounded runs functions at the same time, each within sectionLimit.
func (d *examination) runBounded(ctx context.Context, all ...func(context.Context)) *sync.WaitGroup {
	var wg sync.WaitGroup
	for _, f := range all {
		wg.Go(func() {
			ctx, cancel := context.WithTimeoutCause(ctx, sectionLimit, fmt.Errorf("the checks before it took %s", sectionLimit))
			defer cancel()
			f(ctx)
		})
	}
	return &wg
}

// hideSecrets removes passwords: servers and libraries may repeat one in an error.
func (d *examination) hideSecrets(f *precondition.Finding) {
	for _, text := range []*string{&f.Object, &f.Found, &f.Effect, &f.Fix} {
		*text = d.Config.Hide(*text)
	}
}

// describeConfiguration names the sources of the configuration. Its mistakes are errors
// of the command, which makes no check with a wrong one.
func (d *examination) describeConfiguration() precondition.Report {
	return precondition.Report{{Name: "configuration.file", Found: d.Config.Describe(d.File, d.Env)}}
}

func (d *examination) examineSource(ctx context.Context) source.Examination {
	cfg := daemon.SourceConfig(d.Config, d.Logger)
	mirror := cfg.Source()
	if d.running.instance != "" {
		mirror = mirror.ForInstance(d.running.instance)
	}
	return source.Examine(ctx, mirror, source.Surroundings{HaltOnLost: cfg.HaltOnLost, Running: d.running.answers, Limit: d.Limit})
}

func (d *examination) examineSink(ctx context.Context) precondition.Report {
	key := "sink.url"
	if !d.Config.Sink.URL.IsSet() {
		key = "source.url"
	}
	return sink.Examine(ctx, daemon.ClaimConfig(d.Config, d.Logger).Sink, key, d.kafka.Lanes, d.Limit)
}

func (d *examination) examineKafka(ctx context.Context) topic.Examination {
	access := topic.Access{Brokers: d.Config.Kafka.Brokers, Mechanism: d.Config.Kafka.SASL.Mechanism, Limit: d.Limit}
	if d.Config.Kafka.TLS.Enabled {
		access.TLS = func() (*tls.Config, error) { return d.Config.Kafka.TLS.Config() }
	}
	access.ExplainLogin = func(err error) (kind, fix string) { return kafkaconn.ExplainLogin(d.Config.Kafka.SASL, err) }
	without := d.Config.Kafka
	without.SASL = config.SASL{}
	// What the client library logs about a failed connection is in the findings.
	quiet := slog.New(slog.DiscardHandler)
	access.Unauthenticated = func() []kgo.Opt { return kafkaconn.Options(without, quiet) }
	cfg := daemon.ClaimConfig(d.Config, quiet).Kafka.WithDefaults()
	return topic.Examine(ctx, cfg, access)
}

func (d *examination) examineMachine(ctx context.Context) precondition.Report {
	m := newMachine(d)
	report, _ := precondition.RunOver(ctx, machineChecks, precondition.Everything, d.Limit, func(context.Context) (*machine, error) { return m, nil }) // the report has the errors
	return report
}

// runningDaemon is what is known of a daemon on state.dir.
type runningDaemon struct {
	answers  bool   // over its socket
	version  string // "" unless it answers
	pid      string // of the process that has state.dir open; "": none
	instance string // the id of state.dir; "" before the first start
	err      error  // why it cannot be asked, where it may run all the same
}

// findDaemon asks the daemon on state.dir, and looks who holds the folder. It changes
// nothing.
func findDaemon(ctx context.Context, dir string) (r runningDaemon) {
	r.version, r.answers, r.err = askDaemon(ctx, dir)
	r.instance = statedir.FindInstance(dir)
	pid, err := statedir.Holder(dir)
	if r.pid = pid; r.err == nil {
		r.err = err
	}
	return r
}
