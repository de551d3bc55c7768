package topic

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/precondition"
)

// Coordinator is the broker that answers for a transactional id or a group.
type Coordinator struct {
	kind  int8 // as FindCoordinator has it
	topic string
	key   string
}

// TransactionCoordinator returns the coordinator of a transactional id.
func TransactionCoordinator(id string) Coordinator { return Coordinator{1, "__transaction_state", id} }

// GroupCoordinator returns the coordinator of a consumer group.
func GroupCoordinator(group string) Coordinator { return Coordinator{0, "__consumer_offsets", group} }

// Diagnose finds out why a coordinator does not answer, from the settings of its topic
// and from one request without the client's retries. It returns nil where it finds
// nothing.
func (c Coordinator) Diagnose(ctx context.Context, cfg Config, client *kgo.Client) error {
	facts, err := ReadFacts(ctx, client, cfg, precondition.AtStart)
	if err != nil {
		return err
	}
	found, err := checkInternalTopics(ctx, facts)
	if err != nil {
		return err
	}
	for _, f := range found {
		if f.Object == "topic "+c.topic {
			return errors.New(f.String())
		}
	}
	err = c.Find(ctx, client)
	if errors.Is(err, kerr.CoordinatorNotAvailable) {
		return fmt.Errorf("%w: the %d brokers cannot create topic %s, or too few of its replicas are up; brokers create it with three replicas by default, see their settings: %s",
			err, len(facts.Cluster.brokers), c.topic, c.replicaSettings())
	}
	return err
}

// replicaSettings names the broker settings for the replicas of the coordinator's
// topic.
func (c Coordinator) replicaSettings() string {
	if c.kind == 1 {
		return "transaction.state.log.replication.factor and transaction.state.log.min.isr"
	}
	return "offsets.topic.replication.factor"
}

// Find asks each known broker once for the coordinator, until one of them answers.
func (c Coordinator) Find(ctx context.Context, client *kgo.Client) error {
	var brokers []requester
	for _, broker := range slices.Concat(client.DiscoveredBrokers(), client.SeedBrokers()) {
		brokers = append(brokers, broker)
	}
	return c.findAt(ctx, brokers)
}

// requester is a broker: a *kgo.Broker.
type requester interface {
	Request(ctx context.Context, req kmsg.Request) (kmsg.Response, error)
}

// findAt is Find over these brokers.
func (c Coordinator) findAt(ctx context.Context, brokers []requester) error {
	var err error
	for _, broker := range brokers {
		// One request for each broker: the client writes its version into a request, and may
		// do so after it has given up waiting.
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.CoordinatorType, req.CoordinatorKey, req.CoordinatorKeys = c.kind, c.key, []string{c.key}
		var got kmsg.Response
		if got, err = broker.Request(ctx, req); err != nil && ctx.Err() != nil {
			return err
		} else if err != nil {
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
