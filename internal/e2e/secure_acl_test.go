package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// documentedACL is one right of Kafka that docs/security.md grants.
type documentedACL struct {
	section   string // the comment above the line
	user      string
	kind      string // topic, group, transactional-id
	name      string // as the document has it
	prefixed  bool
	operation string
}

// documentedACLs reads the acl lines of docs/security.md: one right for each name and
// operation.
func documentedACLs(d *deployment) (all []documentedACL) {
	d.Helper()
	text, err := os.ReadFile(filepath.Join(envtest.Root(d), "docs", "security.md"))
	if err != nil {
		d.Fatal(err)
	}
	section := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if comment, ok := strings.CutPrefix(line, "# "); ok {
			section = comment
		}
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "acl" || !strings.HasPrefix(words[1], "User:") {
			continue
		}
		var names []documentedACL
		var operations []string
		prefixed := strings.Contains(line, "--resource-pattern-type prefixed")
		for i := 2; i+1 < len(words); i += 2 {
			switch option, value := strings.TrimPrefix(words[i], "--"), words[i+1]; option {
			case "topic", "group", "transactional-id":
				names = append(names, documentedACL{section: section, user: words[1], kind: option, name: value, prefixed: prefixed})
			case "operation":
				operations = append(operations, value)
			case "resource-pattern-type":
			default:
				d.Fatalf("docs/security.md: option %s of %s", option, line)
			}
		}
		for _, n := range names {
			for _, n.operation = range operations {
				all = append(all, n)
			}
		}
	}
	return all
}

// nameIn returns the name that a documented topic, group or id has in a deployment.
func (a documentedACL) nameIn(d *deployment) string {
	return map[string]string{
		"campaigns": d.topicName("campaigns"), "notifications": d.topicName("notifications"), "campaigns.dead": d.topicName("dead"), "dinnerbell.progress": d.topicName("progress"),
		"dinnerbell": d.name, "dinnerbell-": d.name + "-", "push": d.name + "-push",
	}[a.name]
}

// builder returns the right for the names of a deployment.
func (a documentedACL) builder(d *deployment) *kadm.ACLBuilder {
	d.Helper()
	name := a.nameIn(d)
	operation, err := kmsg.ParseACLOperation(a.operation)
	if name == "" || err != nil {
		d.Fatalf("docs/security.md: %+v", a)
	}
	b := kadm.NewACLs().Operations(operation).ResourcePatternType(kadm.ACLPatternLiteral)
	if a.prefixed {
		b = b.ResourcePatternType(kadm.ACLPatternPrefixed)
	}
	switch a.kind {
	case "topic":
		b = b.Topics(name)
	case "group":
		b = b.Groups(name)
	default:
		b = b.TransactionalIDs(name)
	}
	return b.Allow(a.user).AllowHosts()
}

// grantDocumented grants the rights of the sections of docs/security.md whose comments
// begin with the given words.
func (s *securedServers) grantDocumented(d *deployment, sections ...string) (granted []documentedACL) {
	d.Helper()
	for _, a := range documentedACLs(d) {
		if slices.ContainsFunc(sections, func(want string) bool { return strings.HasPrefix(a.section, want) }) {
			if _, err := s.kafka.Admin.CreateACLs(d.Context(), a.builder(d)); err != nil {
				d.Fatal(err)
			}
			granted = append(granted, a)
		}
	}
	if len(granted) == 0 {
		d.Fatalf("docs/security.md grants nothing under %q", sections)
	}
	return granted
}

// newDeployment makes a database on the secured Postgres, and a deployment there.
func (s *securedServers) newDeployment(t *testing.T) *deployment {
	t.Helper()
	return newDeploymentAt(t, envtest.NamedDatabase(t, s.postgres, envtest.Name("d")), envtest.KafkaAt(t, s.kafka.Addr()))
}
