package e2e

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// foreignClient is a program of others that writes campaigns and reads notifications.
type foreignClient struct {
	name      string
	mechanism mechanism
	write     func(t *testing.T, topic string, settings []string) *exec.Cmd // each line of its input
	read      func(t *testing.T, topic string, settings []string) *exec.Cmd // prints KEY|VALUE of all records
}

// foreignClients are kcat as Debian builds it, and confluent-kafka of PyPI.
func foreignClients() []foreignClient {
	kcatWrite := func(t *testing.T, topic string, settings []string) *exec.Cmd {
		t.Helper()
		return exec.CommandContext(t.Context(), "kcat", slices.Concat(kcatOptions(settings), []string{"-P", "-t", topic})...)
	}
	kcatRead := func(t *testing.T, topic string, settings []string) *exec.Cmd {
		t.Helper()
		return exec.CommandContext(t.Context(), "kcat", slices.Concat(kcatOptions(settings), []string{"-e", "-q", "-f", "%k|%s\n", "-G", settingOf(settings, "group.id"), topic})...)
	}
	python := func(verb string) func(*testing.T, string, []string) *exec.Cmd {
		return func(t *testing.T, topic string, settings []string) *exec.Cmd {
			t.Helper()
			path, err := confluentPython(t)
			if err != nil {
				t.Skipf("%s cannot be installed: %v", confluentKafka, err)
			}
			script := filepath.Join("testdata", "librdkafka_client.py")
			return exec.CommandContext(t.Context(), path, append([]string{script, verb, topic}, settings...)...)
		}
	}
	return []foreignClient{
		{"kcat, PLAIN", mechanisms[0], kcatWrite, kcatRead},
		{"kcat, mutual TLS", mechanisms[3], kcatWrite, kcatRead},
		{"confluent-kafka, SCRAM-SHA-512", mechanisms[2], python("write"), python("read")},
	}
}

// kcatOptions passes settings of librdkafka to kcat.
func kcatOptions(settings []string) (options []string) {
	for _, s := range settings {
		options = append(options, "-X", s)
	}
	return options
}

// settingOf returns the value of a setting.
func settingOf(settings []string, name string) string {
	for _, s := range settings {
		if value, ok := strings.CutPrefix(s, name+"="); ok {
			return value
		}
	}
	return ""
}

// librdkafkaSettings are the settings of librdkafka, as NAME=VALUE, for a user's
// connection by a mechanism.
func (s *securedServers) librdkafkaSettings(m mechanism, user string, more ...string) []string {
	settings := []string{"bootstrap.servers=" + s.kafka.Ports[m.port], "ssl.ca.location=" + s.ca.File}
	if m.name == mutualTLS {
		certificate := s.file("client-" + user)
		settings = append(settings, "security.protocol=SSL", "ssl.certificate.location="+certificate+".pem", "ssl.key.location="+certificate+".key")
	} else {
		settings = append(settings, "security.protocol=SASL_SSL", "sasl.mechanism="+m.name, "sasl.username="+user, "sasl.password="+secret)
	}
	return append(settings, more...)
}

// foreignTexts are texts of a campaign as two clients may write them. Both mean the
// same: the bytes in a notification are those of deliveredText.
var foreignTexts = map[string]string{
	"raw":     "\u201e1 € 😀𝒞é <&> | \u2028\u201c \\\"q\\\" \\\\ / \\t end",
	"escaped": `\u201e1 \u20ac \ud83d\ude00\uD835\uDC9E\u00e9 \u003c\u0026\u003e \u007c \u2028\u201C \u0022q\" \u005c \/ \u0009 \u0065nd`,
}

// deliveredText is foreignTexts in a notification: JSON escapes what it must, and U+2028.
const deliveredText = `„1 € 😀𝒞é <&> | \u2028“ \"q\" \\ / \t end`

// triggerTime matches the only field that the test does not know.
var triggerTime = regexp.MustCompile(`"trigger_datetime_created":\d+`)

// foreignCampaign is the text of a campaign up to the last field that the client writes.
func foreignCampaign(id, text string) string {
	return `{"restaurant_id":"r","adv_campaign_id":"` + id + `","adv_campaign_content":"` + text + `","adv_campaign_owner":"` + text + `","adv_campaign_owner_contact":"` + text +
		`","adv_campaign_datetime_start":1659203516,"adv_campaign_datetime_end":2659207116,`
}

// checkClientsOfOthers sends campaigns with the clients of others, which have the
// documented rights of the services on both sides, and reads the notifications with them,
// byte by byte. None reads the records of an aborted transaction.
func (s *securedServers) checkClientsOfOthers(t *testing.T) {
	t.Helper()
	d := s.newDeployment(t)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('c:1', 'r'), ('клиент 😀', 'r')`)
	d.setup(1)
	s.grantDocumented(d, "run", "the services on both sides")
	d.setConfig("kafka", s.kafkaSettings(d, mechanisms[2]))
	abortRecords(d, d.topicName("notifications"))
	d.start()
	d.awaitReady()
	for n, c := range foreignClients() {
		t.Run(c.name, func(t *testing.T) {
			var sent strings.Builder
			var want []string
			for form, text := range foreignTexts {
				id := fmt.Sprintf("50%%:%d %s", n, form)
				sent.WriteString(foreignCampaign(id, text) + `"datetime_created":1659131516}` + "\n")
				for key, client := range map[string]string{"c%3A1": "c:1", "клиент 😀": "клиент 😀"} {
					want = append(want, fmt.Sprintf(`50%%25%%3A%d %s:%s|%s"client_id":"%s","datetime_created":1659131516,"trigger_datetime_created":NOW}`, n, form, key, foreignCampaign(id, deliveredText), client)+"\n")
				}
			}
			runForeign(t, c.write(t, d.topicName("campaigns"), s.librdkafkaSettings(c.mechanism, writingUser)), sent.String())
			d.awaitRecords(len(want) * (n + 1))
			// The group goes on where the client before it has committed.
			read := runForeign(t, c.read(t, d.topicName("notifications"), s.librdkafkaSettings(c.mechanism, readingUser,
				"group.id="+d.name+"-push", "isolation.level=read_committed", "auto.offset.reset=earliest")), "")
			got := slices.Sorted(strings.Lines(triggerTime.ReplaceAllString(read, `"trigger_datetime_created":NOW`)))
			if slices.Sort(want); !slices.Equal(got, want) {
				t.Errorf("read\n%swant\n%s", strings.Join(got, ""), strings.Join(want, ""))
			}
		})
	}
	d.stop()
}

// awaitRecords waits until the notifications topic has a number of committed records.
func (d *deployment) awaitRecords(n int) {
	d.Helper()
	envtest.Until(d, patience, func() error {
		if have := len(d.kafka.ReadAll(d.topicName("notifications"))); have < n {
			return fmt.Errorf("%d of %d records", have, n)
		}
		return nil
	})
}

// runForeign runs a client with an input and returns its output.
func runForeign(t *testing.T, cmd *exec.Cmd, input string) string {
	t.Helper()
	cmd.Stdin = strings.NewReader(input)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	late := time.AfterFunc(patience, func() { _ = cmd.Cancel() })
	defer late.Stop()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s", cmd.Args, err, stderr.String())
	}
	return string(out)
}
