package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"

	"github.com/twmb/franz-go/pkg/kgo"
)

// revoke takes a documented right away and waits until the broker knows.
func (s *securedServers) revoke(d *deployment, a documentedACL) {
	d.Helper()
	if _, err := s.kafka.Admin.DeleteACLs(d.Context(), a.builder(d)); err != nil {
		d.Fatal(err)
	}
	envtest.Until(d, patience, func() error {
		got, err := s.kafka.Admin.DescribeACLs(d.Context(), a.builder(d))
		for _, r := range got {
			if len(r.Described) > 0 {
				err = errors.Join(err, fmt.Errorf("%+v is still there", r.Described))
			}
		}
		return err
	})
}

// restore gives a right back and waits until the broker knows.
func (s *securedServers) restore(d *deployment, a documentedACL) {
	d.Helper()
	if _, err := s.kafka.Admin.CreateACLs(d.Context(), a.builder(d)); err != nil {
		d.Fatal(err)
	}
	envtest.Until(d, patience, func() error {
		got, err := s.kafka.Admin.DescribeACLs(d.Context(), a.builder(d))
		if err == nil && (len(got) == 0 || len(got[0].Described) == 0) {
			err = errors.New("the right is not there yet")
		}
		return err
	})
}

// objectOf returns how messages name what a right is for, and how the mending command
// does.
func objectOf(d *deployment, a documentedACL) (object, option string) {
	switch name := a.nameIn(d); a.kind {
	case "topic":
		return "topic " + name, "--topic " + name
	case "group":
		return "consumer group " + name, "--group " + name
	default:
		return "transactional id " + name, "--resource-pattern-type prefixed --transactional-id " + name
	}
}

// without runs a command under the rights that are left, and returns what it said.
func (d *deployment) without(args ...string) string {
	d.Helper()
	out, err := exec.CommandContext(d.Context(), d.binary, append([]string{"-c", d.config}, args...)...).CombinedOutput()
	if _, ended := errors.AsType[*exec.ExitError](err); !ended {
		d.Errorf("dinnerbell %v ended with %v: %s", args, err, out)
	}
	return string(out)
}

// rightsWarning matches what the daemon says of a right that it lacks, as an error or as a
// warning of a precondition.
var rightsWarning = regexp.MustCompile(`(?m)^time=\S+ level=(?:WARN|ERROR) .*$`)

// Each right of Kafka that docs/security.md grants is needed, and the error that its
// absence gives names it with the command that grants it.
func (s *securedServers) checkACLs(t *testing.T) {
	t.Helper()
	d := s.newDeployment(t)
	d.addSubscriptions(1, 3)
	d.setup(1)
	s.grantDocumented(d, "run", "beside these", "setup")
	d.setConfig("kafka", s.kafkaSettings(d, mechanisms[0]))
	d.start()
	d.produce(0, newCampaign("delivered", "r0"))
	d.checkOnce(map[string]string{"delivered": "r0"}, patience)
	d.stop()
	again := newCampaign("again", "r0")
	acceptable := &kgo.Record{Topic: d.topicName("dead"), Value: again.JSON(), Headers: []kgo.RecordHeader{
		{Key: "reason", Value: []byte("a test")}, {Key: "reason_class", Value: []byte("bad_time")}, {Key: "topic", Value: []byte(d.topicName("campaigns"))}, {Key: "partition", Value: []byte("0")}, {Key: "offset", Value: []byte("0")}, {Key: "timestamp", Value: []byte("1700000000000")}}}
	if err := d.campaigns.ProduceSync(t.Context(), acceptable).FirstErr(); err != nil {
		t.Fatal(err)
	}
	for _, a := range documentedACLs(d) {
		var said string
		object, option := objectOf(d, a)
		want := []string{object, "kafka-acls.sh", "--allow-principal User:" + principal, "--operation " + a.operation, option}
		switch {
		case a.user != "User:"+principal:
			continue
		case strings.HasPrefix(a.section, "run"):
			s.revoke(d, a)
			d.log = &logBuffer{}
			d.start()
			envtest.Until(d, patience, func() error {
				said = strings.Join(rightsWarning.FindAllString(d.log.tail(1<<20), -1), "\n")
				return missingWords(said, want)
			})
			d.kill()
		case a.name == "notifications":
			s.revoke(d, a)
			said = d.without("audit")
		case a.name == "campaigns.dead":
			s.revoke(d, a)
			said = d.without("dead-letters", "list")
		case a.name == "campaigns":
			s.revoke(d, a)
			said = d.without("dead-letters", "retry", "--all")
		default:
			t.Fatalf("no command for %+v", a)
		}
		t.Logf("%s %s %s: %s", a.section, a.operation, object, said)
		if err := missingWords(said, want); err != nil {
			t.Error(err)
		}
		s.restore(d, a)
	}
}

// missingWords reports the first of the wanted texts that a message lacks.
func missingWords(said string, want []string) error {
	for _, text := range want {
		if !strings.Contains(said, text) {
			return fmt.Errorf("%q is not in: %s", text, said)
		}
	}
	return nil
}
