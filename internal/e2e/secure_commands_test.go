package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"

	"github.com/twmb/franz-go/pkg/kgo"
)

// setupPrincipal is the user of `dinnerbell setup` in docs/security.md.
const setupPrincipal = "dinnerbell-setup"

// Without any right of Kafka that docs/security.md grants, `setup` and the commands of an
// operator work, or name the right with the kafka-acls.sh line that grants it, and work
// after that line.
//
//nolint:tparallel // its parts run one after the other, since they share the principals
func TestSecureCommands(t *testing.T) {
	t.Parallel()
	envtest.Secure(t)
	jaas := "plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required"
	for _, user := range []string{principal, setupPrincipal} {
		jaas += ` user_` + user + `="` + secret + `"`
	}
	listener := envtest.Listener{Name: "PLAIN", Protocol: "SASL_PLAINTEXT", Settings: []string{"sasl.enabled.mechanisms=PLAIN", jaas + ";"}}
	s := &securedServers{kafka: envtest.StartSecureKafka(t, filepath.Join(envtest.Dir(t), "kafka"), []envtest.Listener{listener})}
	t.Run("setup", s.checkSetup)
	t.Run("commands", s.checkCommands)
}

// newPlainDeployment is a deployment whose commands log in as a user.
func (s *securedServers) newPlainDeployment(t *testing.T, user string) *deployment {
	t.Helper()
	d := newDeploymentAt(t, envtest.Database(t), envtest.KafkaAt(t, s.kafka.Addr()))
	s.logIn(d, user)
	return d
}

// logIn makes the commands of a deployment log in as a user; "" is the test itself.
func (s *securedServers) logIn(d *deployment, user string) {
	d.Helper()
	section := map[string]any{
		"brokers": []string{s.kafka.Ports["PLAIN"]}, "campaigns": d.topicName("campaigns"), "notifications": d.topicName("notifications"),
		"dead_letters": d.topicName("dead"), "progress": d.topicName("progress"), "group": d.name,
		"sasl": map[string]any{"mechanism": "PLAIN", "username": user, "password": secret},
	}
	if user == "" {
		section["brokers"] = []string{s.kafka.Addr()}
		delete(section, "sasl")
	}
	d.setConfig("kafka", section)
}

// tryCommand runs a command, and returns what it said and whether it worked.
func (d *deployment) tryCommand(args ...string) (said string, ok bool) {
	d.Helper()
	out, err := exec.CommandContext(d.Context(), d.binary, append([]string{"-c", d.config}, args...)...).CombinedOutput()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		d.Fatal(err)
	}
	return string(out), err == nil
}

// aclLine matches the lines that messages name.
var aclLine = regexp.MustCompile(`kafka-acls\.sh --bootstrap-server \S+ --add --allow-principal (\S+) --operation (\w+) (--resource-pattern-type prefixed )?--(topic|group|transactional-id) ([\w.-]+)`)

// parseLines returns the rights that the kafka-acls.sh lines of a message grant.
func parseLines(d *deployment, said string) (all []documentedACL) {
	d.Helper()
	for _, m := range aclLine.FindAllStringSubmatch(said, -1) {
		a := documentedACL{user: m[1], operation: m[2], prefixed: m[3] != "", kind: m[4], name: m[5]}
		for _, known := range documentedACLs(d) { // the document's name of it
			if known.kind == a.kind && known.nameIn(d) == a.name {
				a.name = known.name
				break
			}
		}
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}

// isDocumented reports whether docs/security.md grants a right.
func (a documentedACL) isDocumented(d *deployment) bool {
	return slices.ContainsFunc(documentedACLs(d), func(known documentedACL) bool {
		known.section = ""
		return known == a
	})
}

// text names a right.
func (a documentedACL) text() string { return a.operation + " on " + a.kind + " " + a.name }

// checkSetup takes each right of setup away. Create is for missing topics, Alter and
// AlterConfigs for a progress topic that somebody has made with the broker's defaults.
func (s *securedServers) checkSetup(t *testing.T) {
	d := s.newPlainDeployment(t, setupPrincipal)
	granted := s.grantDocumented(d, "setup")
	alters := func(a documentedACL) bool { return strings.HasPrefix(a.operation, "Alter") }
	names := []string{d.topicName("campaigns"), d.topicName("notifications"), d.topicName("dead"), d.topicName("progress")}
	d.kafka.DeleteAfter(names...)
	run := func(t *testing.T, without *documentedACL, existing bool) {
		t.Helper()
		for _, a := range granted {
			if without != nil && a == *without || !existing && alters(a) {
				s.revoke(d, a)
			} else {
				s.restore(d, a)
			}
		}
		s.deleteTopics(t, names)
		if existing {
			d.kafka.TopicNamed(d.topicName("campaigns"), 2, nil)
			d.kafka.TopicNamed(d.topicName("progress"), 1, nil)
		}
		said, ok := d.tryCommand("setup")
		if without == nil {
			if !ok || strings.Contains(said, "--operation") {
				t.Errorf("setup with its documented rights: %s", said)
			}
			return
		}
		for n := 0; n < 4 && (n == 0 || !ok); n++ { // a later step may need it for another topic
			mend := parseLines(d, said)
			if len(mend) == 0 {
				t.Errorf("setup without %s names no line: %s", without.text(), said)
				return
			}
			for _, m := range mend {
				if !m.isDocumented(d) || m.user != without.user {
					t.Errorf("setup without %s names %+v, which no document grants: %s", without.text(), m, said)
				}
				s.restore(d, m)
			}
			t.Logf("without %s: %s", without.text(), said)
			said, ok = d.tryCommand("setup")
		}
		if !ok || strings.Contains(said, "--operation") {
			t.Errorf("setup without %s, after the lines: %s", without.text(), said)
		}
	}
	run(t, nil, false)
	run(t, nil, true)
	for _, a := range granted {
		run(t, &a, alters(a))
	}
}

// deleteTopics deletes topics and waits until they are gone.
func (s *securedServers) deleteTopics(t *testing.T, names []string) {
	t.Helper()
	if _, err := s.kafka.Admin.DeleteTopics(t.Context(), names...); err != nil {
		t.Fatal(err)
	}
	envtest.Until(t, patience, func() error {
		found, err := s.kafka.Admin.ListTopics(t.Context(), names...)
		for _, detail := range found {
			if detail.Err == nil {
				err = errors.Join(err, fmt.Errorf("topic %s is still there", detail.Topic))
			}
		}
		return err
	})
}

// operatorCommand is a command that acts from the outside.
type operatorCommand struct {
	name    string
	args    []string
	running bool // it asks the daemon
	// needs are the rights, as kind, name and operation, without which it must not work.
	needs []string
}

// operatorCommands lists the commands, for a deployment with a client who has a campaign.
func operatorCommands(g *grantsTest) []operatorCommand {
	session := []string{"topic campaigns Read", "topic notifications Write", "topic campaigns.dead Write", "topic dinnerbell.progress Read", "topic dinnerbell.progress Write", "group dinnerbell Read", "transactional-id dinnerbell- Write"}
	return []operatorCommand{
		{"audit", g.arguments("audit"), false, []string{"topic notifications Read", "topic dinnerbell.progress Read"}},
		{"dead-letters list", g.arguments("dead-letters list"), false, []string{"topic campaigns.dead Read"}},
		{"dead-letters retry", []string{"dead-letters", "retry", "--all"}, false, []string{"topic campaigns.dead Read", "topic campaigns Write"}},
		{"explain", g.arguments("explain"), false, []string{"topic notifications Read"}},
		{"explain, of nobody's campaign", []string{"explain", "unknown", "somebody"}, false, []string{"topic campaigns.dead Read", "topic campaigns Read"}},
		{"resolve", g.arguments("resolve"), false, session},
		{"preview", g.arguments("preview"), true, nil},
		{"replay", g.arguments("replay"), true, []string{"topic campaigns Read"}},
	}
}

// checkCommands takes each right of the daemon's principal away, and each topic whole.
func (s *securedServers) checkCommands(t *testing.T) {
	d := s.newPlainDeployment(t, "")
	g := &grantsTest{deployment: d, roles: map[string]*grantedRole{}}
	d.addSubscriptions(2, 3)
	d.setup(1)
	granted := s.grantDocumented(d, "run", "beside these")
	s.logIn(d, principal)
	d.start()
	d.awaitReady()
	d.produce(0, newCampaign("delivered", "r0"))
	d.checkOnce(map[string]string{"delivered": "r0"}, patience)
	again := newCampaign("again", "r1")
	letter := &kgo.Record{Topic: d.topicName("dead"), Value: again.JSON(), Headers: []kgo.RecordHeader{
		{Key: "reason", Value: []byte("a test")}, {Key: "reason_class", Value: []byte("bad_time")}, {Key: "topic", Value: []byte(d.topicName("campaigns"))}, {Key: "partition", Value: []byte("0")}, {Key: "offset", Value: []byte("0")}, {Key: "timestamp", Value: []byte("1700000000000")}}}
	if err := d.campaigns.ProduceSync(t.Context(), letter).FirstErr(); err != nil {
		t.Fatal(err)
	}
	cases := make([][]documentedACL, 0, 2*len(granted))
	for _, a := range granted {
		cases = append(cases, []documentedACL{a})
	}
	for _, name := range []string{"campaigns", "notifications", "campaigns.dead", "dinnerbell.progress"} {
		var whole []documentedACL
		for _, a := range granted {
			if a.kind == "topic" && a.name == name {
				whole = append(whole, a)
			}
		}
		cases = append(cases, whole)
	}
	commands := operatorCommands(g)
	for _, c := range slices.DeleteFunc(slices.Clone(commands), func(c operatorCommand) bool { return !c.running }) {
		for _, taken := range cases {
			s.checkWithout(g, c, granted, taken)
		}
	}
	d.produce(0, newCampaign("last", "r0")) // the outbox has its step, which audit compares
	d.checkOnce(map[string]string{"delivered": "r0", "last": "r0"}, patience)
	d.stop()
	for _, c := range slices.DeleteFunc(commands, func(c operatorCommand) bool { return c.running }) {
		for _, taken := range cases {
			s.checkWithout(g, c, granted, taken)
		}
	}
}

// soon bounds the time of a command that lacks a right.
const soon = 30 * time.Second

// checkWithout takes rights away, runs a command, and grants what the command names.
func (s *securedServers) checkWithout(g *grantsTest, c operatorCommand, granted, taken []documentedACL) {
	g.Helper()
	names := make([]string, len(taken))
	needed := false
	for i, a := range taken {
		s.revoke(g.deployment, a)
		names[i] = a.text()
		needed = needed || slices.Contains(c.needs, strings.Join([]string{a.kind, a.name, a.operation}, " "))
	}
	what := c.name + " without " + strings.Join(names, ", ")
	began := time.Now()
	said, ok := g.tryCommand(c.args...)
	took := time.Since(began)
	said = g.withoutLogs(said)
	g.Logf("%s (%s, worked: %v): %s", what, took.Round(time.Millisecond), ok, said)
	lacks := c.lacksRight(said, ok)
	switch {
	case took > soon:
		g.Errorf("%s takes %s: %s", what, took, said)
	case needed && !lacks:
		g.Errorf("%s works: %s", what, said)
	case lacks && strings.Contains(said, "`dinnerbell setup`"):
		g.Errorf("%s advises setup: %s", what, said)
	}
	s.mend(g, c, what, said, lacks)
	for _, a := range granted {
		s.restore(g.deployment, a)
	}
	if c.running {
		envtest.Until(g.T, patience, func() error {
			g.startIfEnded()
			if said, ok := g.tryCommand(c.args...); !ok {
				return fmt.Errorf("%s with all rights: %s", c.name, said)
			}
			return nil
		})
	}
}

// mend grants what a command names until it works; a later step may need more.
func (s *securedServers) mend(g *grantsTest, c operatorCommand, what, said string, lacks bool) {
	g.Helper()
	ok := false
	for n := 0; n < 4 && lacks; n++ {
		mend := parseLines(g.deployment, said)
		if len(mend) == 0 {
			g.Errorf("%s names no line: %s", what, said)
			break
		}
		for _, m := range mend {
			if !m.isDocumented(g.deployment) || m.user != "User:"+principal {
				g.Errorf("%s names %+v, which no document grants: %s", what, m, said)
			}
			s.restore(g.deployment, m)
		}
		envtest.Until(g.T, patience, func() error { // a daemon takes a moment to come back
			g.startIfEnded()
			said, ok = g.tryCommand(c.args...)
			said = g.withoutLogs(said)
			lacks = c.lacksRight(said, ok)
			if lacks && !slices.ContainsFunc(parseLines(g.deployment, said), func(m documentedACL) bool { return !slices.Contains(mend, m) }) {
				return fmt.Errorf("%s, after the lines: %s", what, said)
			}
			return nil
		})
	}
}

// lacksRight reports whether a command could not do its work. Without a daemon `explain`
// never knows all, and shows what it could not read of Kafka.
func (c operatorCommand) lacksRight(said string, ok bool) bool {
	if c.args[0] == "explain" {
		return strings.Contains(said, "what Kafka has")
	}
	return !ok
}

// withoutLogs removes lines of a command's log from what it said.
func (*grantsTest) withoutLogs(said string) string {
	return regexp.MustCompile(`(?m)^time=.*\n`).ReplaceAllString(said, "")
}
