package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/precondition"
)

// stepPatience is how long a step may be under way before status and log show it.
// The client tries a request again inside, for half a minute, and shows nothing of
// the answers that it got.
const stepPatience = 2 * time.Second

// takeoverStep is what a takeover is at: its name, and what finds out why it takes
// long, nil where nothing does.
type takeoverStep struct {
	name  string
	probe func(ctx context.Context) error
}

// watchedStep is the step under way; nil where its error is shown otherwise.
type watchedStep struct{ now atomic.Pointer[takeoverStep] }

// enter begins a step.
func (w *watchedStep) enter(name string, probe func(ctx context.Context) error) {
	w.now.Store(&takeoverStep{name, probe})
}

// watch calls show, again and again, with why a step takes long. It returns a
// function that ends it and waits for the last call.
func (w *watchedStep) watch(ctx context.Context, patience time.Duration, show func(step string, why error)) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(patience)
		defer tick.Stop()
		var before *takeoverStep
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			step := w.now.Load()
			if step != nil && step == before {
				if why := step.find(ctx); ctx.Err() == nil && w.now.Load() == step {
					show(step.name, why)
				}
			}
			before = step
		}
	}()
	return func() { cancel(); <-done }
}

var errNoAnswer = errors.New("no answer yet")

// find gives why the step takes long.
func (s *takeoverStep) find(ctx context.Context) error {
	if s.probe == nil {
		return errNoAnswer
	}
	ctx, cancel := context.WithTimeout(ctx, precondition.Timeout)
	defer cancel()
	if err := s.probe(ctx); err != nil {
		return err
	}
	return errNoAnswer
}

// showSlowStep puts a step that takes long into status and log.
func (l *lane) showSlowStep(step string, why error) {
	err := fmt.Errorf("%s: %w", step, why)
	l.setState("takeover", err)
	l.svc.cfg.Logger.Warn("takeover takes long", "lane", l.id, "error", err)
}

// coordinator is who answers for a transactional id or a group.
type coordinator struct {
	kind  int8 // as FindCoordinator has it
	topic string
	key   string
}

func transactionCoordinator(id string) coordinator { return coordinator{1, "__transaction_state", id} }
func groupCoordinator(group string) coordinator    { return coordinator{0, "__consumer_offsets", group} }

// trouble asks why a coordinator does not answer: without the client's patience,
// and with what can be read of its topic. It is nil where all looks well.
func (c coordinator) trouble(ctx context.Context, cfg KafkaConfig, client *kgo.Client) error {
	cluster, err := readCluster(ctx, client, cfg)
	if err != nil {
		return err
	}
	found, err := readInternalTopics(ctx, &kafkaFacts{cfg: cfg, adm: kadm.NewClient(client), cluster: cluster})
	if err != nil {
		return err
	}
	for _, f := range found {
		if f.Object == "topic "+c.topic {
			return errors.New(f.String())
		}
	}
	err = c.ask(ctx, client)
	if errors.Is(err, kerr.CoordinatorNotAvailable) {
		return fmt.Errorf("%w: the brokers, %d, cannot make topic %s, or too few of its replicas are up; brokers make it with three replicas by default, whose number is a setting of theirs (%s)",
			err, len(cluster.brokers), c.topic, c.settings())
	}
	return err
}

// settings names what the brokers make the topic by.
func (c coordinator) settings() string {
	if c.kind == 1 {
		return "transaction.state.log.replication.factor and transaction.state.log.min.isr"
	}
	return "offsets.topic.replication.factor"
}

// ask asks for the coordinator once.
func (c coordinator) ask(ctx context.Context, client *kgo.Client) error {
	req := kmsg.NewPtrFindCoordinatorRequest()
	req.CoordinatorType, req.CoordinatorKey, req.CoordinatorKeys = c.kind, c.key, []string{c.key}
	var err error
	for _, broker := range slices.Concat(client.DiscoveredBrokers(), client.SeedBrokers()) {
		var got kmsg.Response
		if got, err = broker.Request(ctx, req); err != nil {
			continue
		}
		resp, ok := got.(*kmsg.FindCoordinatorResponse)
		if !ok {
			continue
		}
		code := resp.ErrorCode
		for _, one := range resp.Coordinators {
			code = one.ErrorCode
		}
		return kerr.ErrorForCode(code)
	}
	return err
}
