package stream

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"dinnerbell/internal/testenv/envtest"
)

// runRights are the least that run needs, as docs/kafka.md lists them.
var runRights = func() []kfake.ACL {
	right := func(on kmsg.ACLResourceType, name string, ops ...kmsg.ACLOperation) (out []kfake.ACL) {
		pattern := kmsg.ACLResourcePatternTypeLiteral
		if on == kmsg.ACLResourceTypeTransactionalId {
			pattern = kmsg.ACLResourcePatternTypePrefixed
		}
		for _, op := range ops {
			out = append(out, kfake.ACL{Resource: on, Name: name, Pattern: pattern, Operation: op, Allow: true})
		}
		return out
	}
	const read, write, configs = kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribeConfigs
	return slices.Concat(
		right(kmsg.ACLResourceTypeTopic, "campaigns", read, configs),
		right(kmsg.ACLResourceTypeTopic, "notifications", write, configs),
		right(kmsg.ACLResourceTypeTopic, "campaigns.dead", write, configs),
		right(kmsg.ACLResourceTypeTopic, "dinnerbell.progress", read, write, configs),
		right(kmsg.ACLResourceTypeGroup, "dinnerbell", read),
		right(kmsg.ACLResourceTypeTransactionalId, "dinnerbell-", write),
	)
}()

// guardedWorld is a world whose Kafka grants the daemon these rights alone.
func guardedWorld(t *testing.T, rights []kfake.ACL) (w *world, admin *kgo.Client) {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(),
		kfake.Superuser("PLAIN", "admin", "a"), kfake.User("PLAIN", "daemon", "d", rights...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	as := func(user, password string) []kgo.Opt {
		return []kgo.Opt{kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.SASL(plain.Auth{User: user, Pass: password}.AsMechanism())}
	}
	if admin, err = kgo.NewClient(append(as("admin", "a"), kgo.DefaultProduceTopic("campaigns"))...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	adm := kadm.NewClient(admin)
	compact := "compact"
	for topic, configs := range map[string]map[string]*string{
		"campaigns": nil, "notifications": nil, "campaigns.dead": nil, "dinnerbell.progress": {"cleanup.policy": &compact},
	} {
		if _, err := adm.CreateTopic(t.Context(), 1, 1, configs, topic); err != nil {
			t.Fatal(err)
		}
	}
	w = newWorld(t, 1, map[string][]string{"r1": {"a", "b"}})
	k := &w.cfg.Kafka
	k.Client = func() ([]kgo.Opt, error) { return as("daemon", "d"), nil }
	k.Campaigns, k.Notifications, k.DeadLetters, k.Progress, k.Group = "campaigns", "notifications", "campaigns.dead", "dinnerbell.progress", "dinnerbell"
	return w, admin
}

// The rights that docs/kafka.md lists are enough, and without any one of them
// nothing is shipped and the status says why.
func TestLeastRightsOnKafka(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../docs/kafka.md")
	if err != nil {
		t.Fatal(err)
	}
	for i := -1; i < len(runRights); i++ {
		rights, name := slices.Clone(runRights), "all"
		if i >= 0 {
			missing := rights[i]
			rights, name = slices.Delete(rights, i, i+1), fmt.Sprintf("without %s on %s", missing.Operation, missing.Name)
			if !strings.Contains(string(doc), "`"+missing.Name+"`") {
				t.Errorf("docs/kafka.md does not name %s", missing.Name)
			}
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, admin := guardedWorld(t, rights)
			records := []*kgo.Record{{Value: w.campaign("c", "r1").json()}, {Value: []byte("no campaign")}}
			if err := admin.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
				t.Fatal(err)
			}
			svc, stop := w.start()
			// A progress topic that nobody has written to needs no reading.
			onlyLater := i >= 0 && runRights[i].Operation == kmsg.ACLOperationRead && runRights[i].Name == w.cfg.Kafka.Progress
			envtest.Until(t, patience, func() error {
				s := svc.Status()
				shown := s.LastError
				for _, l := range s.Lanes {
					shown += l.LastError
				}
				switch {
				case i < 0 && s.Counts == Counts{Decided: 2, Shipped: 2, Dead: 1}:
					return nil
				case onlyLater && s.Shipped > 0:
					stop()
					svc, stop = w.start()
				case i >= 0 && s.Shipped > 0:
					t.Fatalf("it is shipped all the same: %+v", s)
				case i >= 0 && shown != "":
					return nil
				}
				return errors.New(shown + ": not there yet")
			})
		})
	}
}
