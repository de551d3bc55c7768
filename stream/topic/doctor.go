package topic

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"dinnerbell/internal/precondition"
)

// Access is how `doctor` reaches the brokers, beside Config.ClientOptions.
type Access struct {
	Brokers []string                    // kafka.brokers
	TLS     func() (*tls.Config, error) // as the clients use it; nil: off
	// Mechanism is kafka.sasl.mechanism; "": off.
	Mechanism string
	// ExplainLogin says why a broker that has the mechanism refused the login, and how to
	// mend it, where the credentials are no user and password. kind "": they are.
	ExplainLogin func(err error) (kind, fix string)
	// Unauthenticated returns the client's options without SASL.
	Unauthenticated func() []kgo.Opt
	Limit           time.Duration // of each check
	Now             func() time.Time
}

// Examination is what `doctor` has found out about Kafka.
type Examination struct {
	Report  precondition.Report
	Lanes   int // partitions of the campaigns topic; 0: unknown
	Brokers int // 0: unknown
}

// The findings that come first: about the addresses in kafka.brokers, and about those
// that the brokers give for themselves.
const (
	connectionCheck = "kafka.connection"
	brokersCheck    = "kafka.brokers"
)

// Examine makes every check of the cluster. A check that cannot be made is Unknown; the
// others are made all the same.
func Examine(ctx context.Context, cfg Config, access Access) Examination {
	all := precondition.Everything
	x := Examination{Report: access.checkSeeds(ctx, cfg)}
	if len(x.Report.At(precondition.Fail)) == len(x.Report) {
		x.Report = append(x.Report, precondition.Finding{Name: brokersCheck, Level: precondition.Unknown, Found: "cannot be checked: no connection"})
		x.Report = append(x.Report, precondition.NotMade(Preconditions, all, "no connection")...)
		return x
	}
	opts, err := cfg.ClientOptions()
	var client *kgo.Client
	if err == nil {
		client, err = kgo.NewClient(append(opts, kgo.RetryTimeout(access.Limit))...)
	}
	if err != nil {
		x.Report = append(x.Report, precondition.NotMade(Preconditions, all, err.Error())...)
		return x
	}
	defer client.Close()
	facts, err := access.readFacts(ctx, client, cfg)
	if err != nil {
		x.Report = append(x.Report, precondition.NotMade(Preconditions, all, err.Error())...)
		return x
	}
	x.Lanes, x.Brokers = len(facts.Cluster.Topics[cfg.Campaigns].Partitions), len(facts.Cluster.brokers)
	advertised, reachable := access.checkAdvertised(ctx, client, facts)
	x.Report = append(x.Report, advertised...)
	if !reachable {
		x.Report = append(x.Report, precondition.NotMade(Preconditions, all, "no broker can be reached at the address that it gives for itself")...)
		return x
	}
	settingsCtx, cancel := context.WithTimeout(ctx, access.Limit)
	defer cancel()
	facts.Cluster.Settings, facts.unread = ReadSettings(settingsCtx, facts.Admin, cfg.allTopics()...)
	made, _ := precondition.RunOver(ctx, Preconditions, all, access.Limit, func(context.Context) (*Facts, error) { return facts, nil }) // the report has the errors
	x.Report = append(x.Report, made...)
	return x
}

// readFacts reads the metadata alone.
func (a *Access) readFacts(ctx context.Context, client *kgo.Client, cfg Config) (*Facts, error) {
	ctx, cancel := context.WithTimeout(ctx, a.Limit)
	defer cancel()
	cluster, err := readMetadata(ctx, client, cfg)
	if err != nil {
		return nil, err
	}
	return &Facts{Config: cfg, Moment: precondition.Everything, Admin: kadm.NewClient(client), Cluster: cluster, ForDoctor: a, client: client}, nil
}

// checkSeeds reaches each address of kafka.brokers alone, all at once. One of them
// suffices for the daemon: another one that cannot be reached is a warning.
func (a *Access) checkSeeds(ctx context.Context, cfg Config) precondition.Report {
	found := make(precondition.Report, len(a.Brokers))
	var all errgroup.Group
	all.SetLimit(16)
	for i, addr := range a.Brokers {
		all.Go(func() error {
			found[i] = a.checkSeed(ctx, cfg, addr)
			return nil
		})
	}
	_ = all.Wait() // no function returns an error
	if failed := found.At(precondition.Fail); len(failed) < len(found) {
		for i := range found {
			if found[i].Level == precondition.Fail {
				found[i].Level, found[i].Effect = precondition.Warn, "the daemon cannot start with it when the others are down"
			}
		}
	}
	return found
}

// checkSeed makes a connection to one address, and explains a failure.
func (a *Access) checkSeed(ctx context.Context, cfg Config, addr string) precondition.Finding {
	ctx, cancel := context.WithTimeout(ctx, a.Limit)
	defer cancel()
	f := precondition.Finding{Name: connectionCheck, Object: "broker " + addr}
	err := a.requestMetadata(ctx, cfg, addr)
	if err == nil {
		f.Found = a.describeAccess()
		if cfg.Principal != "" && a.Mechanism != "" {
			f.Found += " as " + strings.TrimPrefix(cfg.Principal, "User:")
		}
		return f
	}
	t := a.explainRefusal(context.WithoutCancel(ctx), addr, err)
	f.Level, f.Found, f.Effect, f.Fix = precondition.Fail, t.kind+": "+t.text, "nothing works", t.fix
	return f
}

// describeAccess names the protocol of the connections.
func (a *Access) describeAccess() string {
	how := "not encrypted"
	if a.TLS != nil {
		how = "TLS"
	}
	if a.Mechanism == "" {
		return how + ", no SASL"
	}
	return how + ", " + strings.ToUpper(a.Mechanism)
}

// requestMetadata asks one address for the cluster's brokers: the first request that a
// broker answers to authenticated clients alone.
func (a *Access) requestMetadata(ctx context.Context, cfg Config, addr string) error {
	opts, err := cfg.ClientOptions()
	if err != nil {
		return fmt.Errorf("read kafka settings: %w", err)
	}
	return requestFrom(ctx, opts, addr)
}

// errNoSeed reports a client without an address.
var errNoSeed = errors.New("the client has no address")

// requestFrom sends a metadata request to an address.
func requestFrom(ctx context.Context, opts []kgo.Opt, addr string) error {
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(addr), kgo.RequestRetries(0))...)
	if err != nil {
		return fmt.Errorf("make kafka client: %w", err)
	}
	defer client.Close()
	seeds := client.SeedBrokers()
	if len(seeds) == 0 {
		return errNoSeed
	}
	_, err = seeds[0].Request(ctx, noTopics())
	return err
}

// checkAdvertised reaches each broker at the address that it gives for itself: clients
// go there, whatever kafka.brokers names. reachable is false if none can be reached.
func (a *Access) checkAdvertised(ctx context.Context, client *kgo.Client, facts *Facts) (found precondition.Report, reachable bool) {
	brokers := facts.Cluster.brokers
	errs := make([]error, len(brokers))
	var all errgroup.Group
	all.SetLimit(16)
	for i, b := range brokers {
		all.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, a.Limit)
			defer cancel()
			_, errs[i] = client.Broker(int(b.NodeID)).Request(ctx, noTopics())
			return nil
		})
	}
	_ = all.Wait()                // no function returns an error
	reachable = len(brokers) == 0 // unknown
	for i, b := range brokers {
		if errs[i] == nil {
			reachable = true
			continue
		}
		addr := brokerAddress(b)
		t := a.explainRefusal(ctx, addr, errs[i])
		fix := t.fix
		if t.network {
			fix = fmt.Sprintf("in server.properties of broker %d: advertised.listeners with an address that this machine can reach; then restart it", b.NodeID)
		}
		found = append(found, precondition.Finding{Name: brokersCheck, Level: precondition.Fail, Object: fmt.Sprintf("broker %d", b.NodeID),
			Found: fmt.Sprintf("it gives its address as %s: %s: %s", addr, t.kind, t.text), Effect: "the partitions that it leads cannot be used", Fix: fix})
	}
	if len(found) == 0 {
		found = precondition.Report{{Name: brokersCheck, Found: fmt.Sprintf("%d, all reachable at their advertised addresses", len(brokers))}}
	}
	return found, reachable
}
