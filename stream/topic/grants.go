package topic

import (
	"fmt"
	"strings"

	"dinnerbell/internal/precondition"
)

// resource is what a right is on: topics, a consumer group, transactional ids with a
// prefix, or the cluster.
type resource struct {
	kind  string   // as in the options of kafka-acls.sh and in AWS's resource names
	names []string // none for the cluster
}

// The kinds of resources.
const (
	kindTopic         = "topic"
	kindGroup         = "group"
	kindTransactional = "transactional-id" // the name is a prefix
	kindCluster       = "cluster"
)

func onTopics(names ...string) resource { return resource{kindTopic, names} }

// aclOptions returns the options of kafka-acls.sh.
func (r resource) aclOptions() string {
	text := "--" + r.kind
	if len(r.names) > 0 {
		quoted := make([]string, len(r.names))
		for i, name := range r.names {
			quoted[i] = precondition.QuoteArgument(name)
		}
		text += " " + strings.Join(quoted, " --"+r.kind+" ")
	}
	if r.kind == kindTransactional {
		text = "--resource-pattern-type prefixed " + text
	}
	return text
}

// iamNames returns the resources as the ends of their ARNs
// (arn:aws:kafka:REGION:ACCOUNT:…).
func (r resource) iamNames() string {
	if r.kind == kindCluster {
		return "cluster/CLUSTER/UUID"
	}
	var list []string
	for _, name := range r.names {
		end := r.kind + "/CLUSTER/UUID/" + name
		if r.kind == kindTransactional {
			end += "*"
		}
		list = append(list, end)
	}
	return strings.Join(list, " and ")
}

// iamActions are the actions of an IAM policy that stand for an operation of Kafka's ACLs,
// by kind and operation, each with those that it requires.
// https://docs.aws.amazon.com/msk/latest/developerguide/kafka-actions.html
var iamActions = map[string]string{
	"topic Read":              "kafka-cluster:ReadData, kafka-cluster:DescribeTopic",
	"topic Write":             "kafka-cluster:WriteData, kafka-cluster:DescribeTopic",
	"topic Describe":          "kafka-cluster:DescribeTopic",
	"topic Create":            "kafka-cluster:CreateTopic, kafka-cluster:DescribeTopic",
	"topic Alter":             "kafka-cluster:AlterTopic, kafka-cluster:DescribeTopic",
	"topic DescribeConfigs":   "kafka-cluster:DescribeTopicDynamicConfiguration, kafka-cluster:DescribeTopic",
	"topic AlterConfigs":      "kafka-cluster:AlterTopicDynamicConfiguration, kafka-cluster:DescribeTopicDynamicConfiguration",
	"group Read":              "kafka-cluster:AlterGroup, kafka-cluster:DescribeGroup",
	"transactional-id Write":  "kafka-cluster:AlterTransactionalId, kafka-cluster:DescribeTransactionalId",
	"cluster DescribeConfigs": "kafka-cluster:DescribeClusterDynamicConfiguration",
}

// grantFix returns what grants a right to this client: a command, or under IAM the actions
// that the policy of the client's identity has to allow.
func (c Config) grantFix(bootstrap, operation string, on resource) string {
	if !c.IAM {
		return fmt.Sprintf("kafka-acls.sh --bootstrap-server %s --add --allow-principal %s --operation %s %s", bootstrap, precondition.QuoteArgument(c.Principal), operation, on.aclOptions())
	}
	fix := fmt.Sprintf("allow %s on %s in the IAM policy of %s", iamActions[on.kind+" "+operation], on.iamNames(), c.identity())
	if operation == "Write" { // the producers are idempotent
		fix += ", and kafka-cluster:WriteDataIdempotently on cluster/CLUSTER/UUID"
	}
	return fix
}

// identity names this client for messages.
func (c Config) identity() string {
	if c.IAM {
		return "the identity of kafka.sasl.aws"
	}
	return c.Principal
}

// rightName names a right as those who grant it do.
func (c Config) rightName(operation string, on resource) string {
	if c.IAM {
		action, _, _ := strings.Cut(iamActions[on.kind+" "+operation], ",")
		return action
	}
	return operation
}
