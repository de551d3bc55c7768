package topic

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Where IAM policies grant the rights, kafka-acls.sh grants none: the actions are named.
func TestMissingRightsUnderIAM(t *testing.T) {
	t.Parallel()
	f := goodFacts()
	f.Config.IAM = true
	for name, detail := range f.Cluster.Topics {
		detail.AuthorizedOperations = []kmsg.ACLOperation{kmsg.ACLOperationDescribe}
		f.Cluster.Topics[name] = detail
	}
	found, err := checkRights(t.Context(), f)
	if err != nil || len(found) != 5 {
		t.Fatalf("%+v, %v", found, err)
	}
	found = append(found, f.Config.MissingTransactionRight(0, "b:9092", kerr.TransactionalIDAuthorizationFailed))
	l := Limits{guessed: []string{"out", "dead"}, Bootstrap: "b:9092"}
	texts := []string{l.RaiseHint(f.Config), f.grantFix("DescribeConfigs", resource{kind: kindCluster})}
	for _, f := range found {
		texts = append(texts, f.Found+": "+f.Fix)
	}
	all := strings.Join(texts, "\n")
	for _, want := range []string{
		"the identity of kafka.sasl.aws lacks the right kafka-cluster:ReadData",
		"allow kafka-cluster:ReadData, kafka-cluster:DescribeTopic on topic/CLUSTER/UUID/in in the IAM policy of the identity of kafka.sasl.aws",
		"allow kafka-cluster:WriteData, kafka-cluster:DescribeTopic on topic/CLUSTER/UUID/out in the IAM policy of the identity of kafka.sasl.aws, and kafka-cluster:WriteDataIdempotently on cluster/CLUSTER/UUID",
		"kafka-cluster:AlterTransactionalId, kafka-cluster:DescribeTransactionalId on transactional-id/CLUSTER/UUID/g-*",
		"kafka-cluster:DescribeTopicDynamicConfiguration, kafka-cluster:DescribeTopic on topic/CLUSTER/UUID/out and topic/CLUSTER/UUID/dead",
		"kafka-cluster:DescribeClusterDynamicConfiguration on cluster/CLUSTER/UUID",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	if strings.Contains(all, "kafka-acls") || strings.Contains(all, "User:NAME") || strings.Contains(all, "allow  on") {
		t.Errorf("an ACL, or no action:\n%s", all)
	}
}

// Names are arguments of a shell: a group, an id and a principal may have any character.
func TestACLsOfNamesForAShell(t *testing.T) {
	t.Parallel()
	f := goodFacts()
	f.Config.Principal = "User:CN=bell $HOME,OU=it's"
	for want, on := range map[string]resource{
		"--topic in": onTopics("in"), "--group 'my group; rm *'": {kindGroup, []string{"my group; rm *"}},
		"--resource-pattern-type prefixed --transactional-id 'a`b-'": {kindTransactional, []string{"a`b-"}},
	} {
		want = `kafka-acls.sh --bootstrap-server b:9092 --add --allow-principal 'User:CN=bell $HOME,OU=it'\''s' --operation Read ` + want
		if got := f.grantFix("Read", on); got != want {
			t.Errorf("%s; want %s", got, want)
		}
	}
}

// Every right of Kafka's ACLs that is asked for has its actions of IAM.
func TestACLsOfRights(t *testing.T) {
	t.Parallel()
	f := goodFacts()
	f.Config.Principal = "User:bell"
	for want, on := range map[string]resource{
		"--topic a --topic b": onTopics("a", "b"), "--group g": {kindGroup, []string{"g"}}, "--cluster": {kind: kindCluster},
		"--resource-pattern-type prefixed --transactional-id g-": {kindTransactional, []string{"g-"}},
	} {
		if got := f.grantFix("Read", on); got != "kafka-acls.sh --bootstrap-server b:9092 --add --allow-principal User:bell --operation Read "+want {
			t.Errorf("%s; want %s", got, want)
		}
	}
}
