package topic

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/precondition"
)

// grantFix returns what grants a right to this client.
func (f *Facts) grantFix(operation string, on resource) string {
	return f.Config.grantFix(f.Cluster.Bootstrap, operation, on)
}

// missingRight returns the finding of a missing right.
func (f *Facts) missingRight(object, operation, effect string, on resource) precondition.Finding {
	return precondition.Finding{Level: precondition.Fail, Object: object,
		Found: fmt.Sprintf("%s lacks the right %s", f.Config.identity(), f.Config.rightName(operation, on)), Effect: effect, Fix: f.grantFix(operation, on)}
}

// checkRights compares the operations that the brokers allow on the topics, which come
// with the metadata (KIP-430), with those that a lane needs. A broker that does not
// report them, or allows everything, has no finding. `setup` may have a user of its own,
// who need not have the rights of a lane.
func checkRights(_ context.Context, f *Facts) ([]precondition.Finding, error) {
	if f.isSetup() {
		return f.checkSetupRights(), nil
	}
	k := f.Config
	var found []precondition.Finding
	for _, c := range []struct {
		topic     string
		operation kmsg.ACLOperation
		name      string
		effect    string
	}{
		{k.Campaigns, kmsg.ACLOperationRead, "Read", "no campaign is read"},
		{k.Notifications, kmsg.ACLOperationWrite, "Write", "no notification is written"},
		{k.DeadLetters, kmsg.ACLOperationWrite, "Write", "the first refused message stops its lane"},
		{k.Progress, kmsg.ACLOperationWrite, "Write", "no step is shipped"},
		{k.Progress, kmsg.ACLOperationRead, "Read", "no lane can be taken over"},
	} {
		detail := f.Cluster.Topics[c.topic]
		switch {
		case errors.Is(detail.Err, kerr.TopicAuthorizationFailed): // a topic that may not be described has no list of rights
		case detail.Err != nil, len(detail.AuthorizedOperations) == 0, slices.Contains(detail.AuthorizedOperations, c.operation):
			continue
		}
		found = append(found, f.missingRight("topic "+c.topic, c.name, c.effect, onTopics(c.topic)))
	}
	return found, nil
}

// isSetup reports whether `setup` makes the checks.
func (f *Facts) isSetup() bool {
	return f.Moment == precondition.AtSetup || f.Moment == precondition.AfterSetup
}

// checkSetupRights requires that `setup` may see the topics. The brokers report no other
// right of a topic that is missing.
func (f *Facts) checkSetupRights() (found []precondition.Finding) {
	for _, topic := range f.Config.allTopics() {
		if errors.Is(f.Cluster.Topics[topic].Err, kerr.TopicAuthorizationFailed) {
			found = append(found, f.missingRight("topic "+topic, "Describe", "setup does not know whether it exists", onTopics(topic)))
		}
	}
	return found
}

// checkGroupRight requires the right on the consumer group, which assigns the lanes.
func checkGroupRight(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	if f.isSetup() {
		return nil, nil
	}
	group := f.Config.Group
	described, err := f.Admin.DescribeGroups(ctx, group)
	d := described[group]
	err = errors.Join(err, d.Err)
	if shards, ok := errors.AsType[*kadm.ShardErrors](err); ok && len(shards.Errs) > 0 {
		err = shards.Errs[0].Err
	}
	refused := errors.Is(err, kerr.GroupAuthorizationFailed)
	if err != nil && !refused && f.ForDoctor != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, fmt.Errorf("describe consumer group %s: %w", group, err)
	}
	if !refused && (err != nil || len(d.AuthorizedOperations) == 0 || slices.Contains(d.AuthorizedOperations, kmsg.ACLOperationRead)) {
		return nil, nil //nolint:nilerr // a new cluster has no coordinator for some seconds, and joining the group reports every other error
	}
	return []precondition.Finding{f.missingGroupRight()}, nil
}

// missingGroupRight returns the finding of the missing right on the consumer group.
func (f *Facts) missingGroupRight() precondition.Finding {
	return f.missingRight("consumer group "+f.Config.Group, "Read", "no lane is assigned", resource{kindGroup, []string{f.Config.Group}})
}

// MissingTransactionRight returns the finding of a transactional id that the client may
// not use. Brokers refuse the id when it is used: they do not report the right before.
func (c Config) MissingTransactionRight(lane int32, bootstrap string, err error) precondition.Finding {
	on := resource{kindTransactional, []string{c.Group + "-"}}
	return precondition.Finding{Name: "kafka.transactional_id", Level: precondition.Fail, Object: "transactional id " + c.TransactionalID(lane),
		Found: fmt.Sprintf("%s lacks the right %s: %v", c.identity(), c.rightName("Write", on), err), Effect: "the lane cannot be taken over",
		Fix: c.grantFix(bootstrap, "Write", on)}
}

// ExplainDenied adds to an error with which the brokers refused a request about a topic
// the right that it needs, and what grants it. It returns every other error
// unchanged.
func (c Config) ExplainDenied(err error, client *kgo.Client, operation, topic string) error {
	if !errors.Is(err, kerr.TopicAuthorizationFailed) {
		return err
	}
	return &DeniedError{err, c.factsFor(client).missingRight("topic "+topic, operation, "", onTopics(topic))}
}

// DeniedError is a request that the brokers refused for want of a right, with the finding
// that names the right and what grants it.
type DeniedError struct {
	Err   error
	Right precondition.Finding
}

// Error returns the error and the finding in one line.
func (e *DeniedError) Error() string { return e.Err.Error() + ": " + e.Right.String() }

// Unwrap returns the error of the request.
func (e *DeniedError) Unwrap() error { return e.Err }

// ExplainGroupDenied is ExplainDenied for a request about the consumer group.
func (c Config) ExplainGroupDenied(err error, client *kgo.Client) error {
	if !errors.Is(err, kerr.GroupAuthorizationFailed) {
		return err
	}
	return &DeniedError{err, c.factsFor(client).missingGroupRight()}
}

// factsFor returns what the findings of missing rights need.
func (c Config) factsFor(client *kgo.Client) *Facts {
	seeds, _ := client.OptValue(kgo.SeedBrokers).([]string)
	return &Facts{Config: c.WithDefaults(), Cluster: &Cluster{Bootstrap: strings.Join(seeds, ",")}}
}

// ExplainUndescribed returns the error of a topic that cannot be described: a right that is
// missing, which the operation of the caller needs, or a topic that `setup` creates.
func (c Config) ExplainUndescribed(err error, client *kgo.Client, operation, topic string) error {
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return NameBrokers(client, fmt.Errorf("describe topic %s: %w; `dinnerbell setup` creates it", topic, err))
	}
	return NameBrokers(client, fmt.Errorf("describe topic %s: %w", topic, c.ExplainDenied(err, client, operation, topic)))
}

// checkInternalTopics requires as many brokers as the internal topics get replicas.
// With fewer, as on one broker with Kafka's defaults, the brokers cannot create these
// topics, and no transaction or group ever begins.
func checkInternalTopics(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	if len(f.Cluster.brokers) == 0 {
		return nil, nil
	}
	settings, err := f.readBrokerSettings(ctx)
	if err != nil && f.ForDoctor != nil {
		return nil, err
	}
	if err != nil {
		return nil, nil //nolint:nilerr // few clients have that right; without it the first takeover reports the trouble
	}
	var found []precondition.Finding
	for _, c := range []struct{ topic, replicas, insync, effect string }{
		{"__transaction_state", "transaction.state.log.replication.factor", "transaction.state.log.min.isr", "no transaction begins, so no lane is taken over"},
		{"__consumer_offsets", "offsets.topic.replication.factor", "", "the consumer group never answers, so no lane is assigned"},
	} {
		have := int64(len(f.Cluster.brokers))
		setting, want := c.replicas, settings.readNumber(c.replicas, 1)
		existing, err := f.Admin.ListTopicsWithInternal(ctx, c.topic)
		if copies := (&Cluster{Topics: existing}).minReplicas(c.topic); err == nil && copies > 0 {
			have = int64(copies)
			setting, want = c.insync, settings.readNumber(c.insync, 1)
		}
		if want <= have {
			if least := settings.readNumber(c.insync, 1); least > have {
				setting, want = c.insync, least
			} else {
				continue
			}
		}
		found = append(found, precondition.Finding{Level: precondition.Fail, Object: "topic " + c.topic,
			Found: fmt.Sprintf("%s is %d, and there is room for %d", setting, want, have), Effect: c.effect,
			Fix: "in the broker's server.properties: " + internalTopicFix(c.replicas, c.insync, have) + "; then restart it"})
	}
	return found, nil
}

// readBrokerSettings reads the settings of one broker.
func (f *Facts) readBrokerSettings(ctx context.Context) (Settings, error) {
	if len(f.Cluster.brokers) == 0 {
		return nil, errors.New("no broker is known")
	}
	described, err := f.Admin.DescribeBrokerConfigs(ctx, f.Cluster.brokers[0].NodeID)
	for _, d := range described {
		err = errors.Join(err, d.Err)
	}
	switch {
	case errors.Is(err, kerr.ClusterAuthorizationFailed):
		return nil, fmt.Errorf("the brokers' settings may not be read; to have them checked: %s", f.grantFix("DescribeConfigs", resource{kind: kindCluster}))
	case err != nil:
		return nil, fmt.Errorf("read the brokers' settings: %w", err)
	}
	settings := Settings{}
	for _, d := range described {
		for _, c := range d.Configs {
			settings[c.Key] = c
		}
	}
	return settings, nil
}

// SessionTimeout is how long the consumer group waits for a silent daemon before it
// gives the lanes to another.
const SessionTimeout = 10 * time.Second

// checkTimeouts compares the brokers' limits of timeouts with those that the lanes and
// the consumer group ask for.
func checkTimeouts(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	settings, err := f.readBrokerSettings(ctx)
	if err != nil && f.ForDoctor != nil {
		return nil, err
	}
	if err != nil {
		return nil, nil //nolint:nilerr // as in checkInternalTopics
	}
	var found []precondition.Finding
	refuse := func(setting string, has, want int64, effect string) {
		found = append(found, precondition.Finding{Level: precondition.Fail, Object: "the brokers", Found: fmt.Sprintf("%s is %d", setting, has), Effect: effect,
			Fix: fmt.Sprintf("in the brokers' server.properties: %s=%d; then restart them", setting, want)})
	}
	if has := settings.readNumber("transaction.max.timeout.ms", 900_000); has < TransactionTimeout.Milliseconds() {
		refuse("transaction.max.timeout.ms", has, 900_000, fmt.Sprintf("the lanes' transactions have a timeout of %s, and none begins", TransactionTimeout))
	}
	group := fmt.Sprintf("the consumer group has a session timeout of %s, and no lane is assigned", SessionTimeout)
	if has := settings.readNumber("group.min.session.timeout.ms", 6000); has > SessionTimeout.Milliseconds() {
		refuse("group.min.session.timeout.ms", has, 6000, group)
	}
	if has := settings.readNumber("group.max.session.timeout.ms", 1_800_000); has < SessionTimeout.Milliseconds() {
		refuse("group.max.session.timeout.ms", has, 1_800_000, group)
	}
	return found, nil
}

func internalTopicFix(replicas, insync string, have int64) string {
	fix := replicas + "=" + strconv.FormatInt(have, 10)
	if insync != "" {
		fix += " " + insync + "=" + strconv.FormatInt(max(1, have-1), 10)
	}
	return fix
}
