package stream

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/precondition"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/record"
	"dinnerbell/stream/takeover"
)

// newRestrictedDeployment returns a deployment on a broker with access control.
func newRestrictedDeployment(t *testing.T) (*deployment, *kadm.Client) {
	t.Helper()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 3)})
	broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "admin", "pass"), kfake.User("PLAIN", "bell", "pass"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	as := func(user string) []kgo.Opt {
		return []kgo.Opt{kgo.SeedBrokers(broker.ListenAddrs()...), kgo.SASL(plain.Auth{User: user, Pass: "pass"}.AsMechanism())}
	}
	w.cfg.Kafka.ClientOptions = func() ([]kgo.Opt, error) { return as("bell"), nil }
	w.cfg.Kafka.Principal = "User:bell"
	client, err := kgo.NewClient(as("admin")...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	adm, k := kadm.NewClient(client), w.cfg.Kafka
	compact := "compact"
	for topic, configs := range map[string]map[string]*string{k.Campaigns: nil, k.Notifications: nil, k.DeadLetters: nil, k.Progress: {"cleanup.policy": &compact}} {
		if _, err := adm.CreateTopic(t.Context(), 1, 1, configs, topic); err != nil {
			t.Fatal(err)
		}
		envtest.AwaitTopic(t, adm, topic)
	}
	return w, adm
}

// allow gives bell rights on a topic, a group or a transactional id.
func allow(t *testing.T, adm *kadm.Client, acl *kadm.ACLBuilder, operations ...kmsg.ACLOperation) {
	t.Helper()
	if _, err := adm.CreateACLs(t.Context(), acl.Allow("User:bell").AllowHosts().ResourcePatternType(kadm.ACLPatternLiteral).Operations(operations...)); err != nil {
		t.Fatal(err)
	}
}

// The preconditions name each missing right, with topic, principal and operation,
// before a lane needs it.
func TestMissingRightsAreNamed(t *testing.T) {
	t.Parallel()
	if envtest.RealKafka() {
		t.Skip("it has a broker of its own")
	}
	w, adm := newRestrictedDeployment(t)
	k := w.cfg.Kafka
	steps := []struct {
		object, operation string
		grant             func()
	}{
		{"topic " + k.Campaigns, "Read", func() { allow(t, adm, kadm.NewACLs().Topics(k.Campaigns), kadm.OpRead, kadm.OpDescribe) }},
		{"topic " + k.Notifications, "Write", func() { allow(t, adm, kadm.NewACLs().Topics(k.Notifications), kadm.OpWrite, kadm.OpDescribe) }},
		{"topic " + k.DeadLetters, "Write", func() { allow(t, adm, kadm.NewACLs().Topics(k.DeadLetters), kadm.OpWrite, kadm.OpDescribe) }},
		{"topic " + k.Progress, "Write", func() { allow(t, adm, kadm.NewACLs().Topics(k.Progress), kadm.OpWrite, kadm.OpDescribe) }},
		{"topic " + k.Progress, "Read", func() { allow(t, adm, kadm.NewACLs().Topics(k.Progress), kadm.OpRead) }},
		{"consumer group " + k.Group, "Read", func() { allow(t, adm, kadm.NewACLs().Groups(k.Group), kadm.OpRead, kadm.OpDescribe) }},
	}
	for _, step := range steps {
		_, err := takeover.CheckPreconditions(t.Context(), w.cfg.Config, precondition.AtSession)
		halt, ok := errors.AsType[*halt.Error](err)
		if !ok || !strings.HasPrefix(halt.What, step.object+": User:bell lacks the right "+step.operation) ||
			!strings.Contains(halt.Hint, "kafka-acls.sh") || !strings.Contains(halt.Hint, "--allow-principal User:bell --operation "+step.operation) {
			t.Errorf("without %s on %s: %v", step.operation, step.object, err)
		}
		step.grant()
	}
	warnings, err := takeover.CheckPreconditions(t.Context(), w.cfg.Config, precondition.AtStart)
	if err != nil || strings.Count(strings.Join(warnings, "\n"), "--operation DescribeConfigs --topic ") != 4 {
		t.Errorf("with every right that is needed: %q, %v", warnings, err)
	}
	svc := New(w.cfg, w.store, w.barrier)
	svc.unmetPatience = 1
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := svc.Run(ctx); err == nil || !strings.Contains(err.Error(), "transactional id "+k.Group+"-0: User:bell lacks the right Write") {
		t.Errorf("without the right on the transactional id: %v", err)
	}
}

// `setup` may have a user of its own: it needs to see the topics, and no right of `run`.
func TestSetupNeedsNoRightOfRun(t *testing.T) {
	t.Parallel()
	if envtest.RealKafka() {
		t.Skip("it has a broker of its own")
	}
	w, adm := newRestrictedDeployment(t)
	k := w.cfg.Kafka
	if _, err := takeover.CheckPreconditions(t.Context(), w.cfg.Config, precondition.AtSetup); err == nil || !strings.Contains(err.Error(), "--allow-principal User:bell --operation Describe --topic ") {
		t.Errorf("without a right: %v", err)
	}
	allow(t, adm, kadm.NewACLs().Topics(k.Campaigns, k.Notifications, k.DeadLetters, k.Progress), kadm.OpDescribe)
	for _, moment := range []precondition.Moment{precondition.AtSetup, precondition.AfterSetup} {
		if warnings, err := takeover.CheckPreconditions(t.Context(), w.cfg.Config, moment); err != nil || strings.Contains(strings.Join(warnings, " "), "--operation Read") {
			t.Errorf("at moment %d: %q, %v", moment, warnings, err)
		}
	}
}

// The hint for a step that is too large is right also where the limit may not be read.
func TestLimitThatMayNotBeReadIsNamed(t *testing.T) {
	t.Parallel()
	if envtest.RealKafka() {
		t.Skip("it has a broker of its own")
	}
	w, adm := newRestrictedDeployment(t)
	k := w.cfg.Kafka
	for _, acl := range []*kadm.ACLBuilder{
		kadm.NewACLs().Topics(k.Campaigns, k.Notifications, k.DeadLetters, k.Progress), kadm.NewACLs().Groups(k.Group), kadm.NewACLs().TransactionalIDs(k.Group + "-0"),
	} {
		allow(t, adm, acl, kadm.OpRead, kadm.OpWrite, kadm.OpDescribe)
	}
	big := &record.Payload{}
	c := w.campaign("c", "r1")
	c.Content = strings.Repeat("x", 2_000_000)
	if err := big.Add(c, 1, "a"); err != nil {
		t.Fatal(err)
	}
	envtest.Until(t, patience, func() error { return initLanesFor(w) })
	w.db.Exec(`INSERT INTO dinnerbell.outbox (lane, seq, notifications, payload) VALUES (0, 1, 1, $1)`, big.Encode())
	w.db.Exec(`UPDATE dinnerbell.lane SET seq = 1`)
	if halted := w.halted(); !strings.Contains(halted.Hint, "max.message.bytes") || !strings.Contains(halted.Hint, "--operation DescribeConfigs --topic "+k.Notifications) {
		t.Errorf("halt: %v", halted)
	}
}
