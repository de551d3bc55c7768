package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"dinnerbell/cdc"
	"dinnerbell/cdc/source"
	"dinnerbell/internal/postgres"
	"dinnerbell/stream/topic"
)

// Validate checks that the daemon could run with these values. It reports all
// problems at once; each line begins with its key. Errors wrap ErrInvalid.
func (c *Config) Validate() error {
	problems := slices.Concat(c.checkRules(), c.checkSource(), c.checkSink(), c.checkKafka(), c.checkTLS(),
		c.checkSASL(), c.checkJoin(), c.checkHTTP(), c.checkRest())
	return joinProblems(problems)
}

// missingValue returns an error that names the key to set, and the absence of a
// file if that is the cause.
func (c *Config) missingValue(key string) error {
	hint := ""
	if c.missing != "" {
		hint = fmt.Sprintf("; there is no %s in this directory and no -c FILE was given", c.missing)
	}
	return fmt.Errorf("%s: not set, and it has no default: set it in the file or as %s%s", key, envName(key), hint)
}

func (c *Config) checkSource() []error {
	var out []error
	if !c.Source.URL.IsSet() {
		out = append(out, c.missingValue("source.url"))
	} else if err := checkURL(c.Source.URL); err != nil {
		out = append(out, err)
	}
	if len(c.Source.Columns.ID) == 0 {
		out = append(out, errors.New("source.columns.id: empty"))
	}
	for _, name := range c.Source.Columns.ID {
		if err := postgres.CheckIdentifier(name); err != nil {
			out = append(out, fmt.Errorf("source.columns.id: %w", err))
		}
	}
	for _, n := range []struct{ key, value string }{
		{"source.columns.client", c.Source.Columns.Client},
		{"source.columns.restaurant", c.Source.Columns.Restaurant},
		{"source.publication", c.Source.Publication},
	} {
		if err := postgres.CheckIdentifier(n.value); err != nil {
			out = append(out, fmt.Errorf("%s: %w", n.key, err))
		}
	}
	command, _ := c.passwordCommands()
	if err := command.validate(); err != nil {
		out = append(out, err)
	}
	if err := source.CheckSlotName(c.Source.Slot); err != nil {
		out = append(out, fmt.Errorf("source.slot: %w", err))
	}
	return out
}

func (c *Config) checkSink() []error {
	var out []error
	if c.Sink.URL.IsSet() {
		if err := checkURL(c.Sink.URL); err != nil {
			out = append(out, err)
		}
	}
	_, command := c.passwordCommands()
	if err := command.validate(); err != nil {
		out = append(out, err)
	}
	if len(c.Sink.PasswordCommand) > 0 && !c.Sink.URL.IsSet() {
		out = append(out, errors.New("sink.password_command: sink.url is not set, so the sink is reached with source.url and source.password_command; set sink.url too, or leave the command out"))
	}
	if err := postgres.CheckIdentifier(c.Sink.Schema); err != nil {
		out = append(out, fmt.Errorf("sink.schema: %w", err))
	}
	return out
}

// checkURL looks the references up once, so that an unset variable is reported at
// the start and not by a failing connection.
func checkURL(s Secret) error {
	raw, err := s.Reveal()
	if err != nil {
		return err
	}
	if err := postgres.Check(raw); err != nil {
		return fmt.Errorf("%s: %w", s.key, err)
	}
	return nil
}

// topicName matches the names that Kafka allows
// (org.apache.kafka.common.internals.Topic).
var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

func (c *Config) checkKafka() []error {
	var out []error
	if len(c.Kafka.Brokers) == 0 {
		out = append(out, c.missingValue("kafka.brokers"))
	}
	for _, b := range c.Kafka.Brokers {
		if err := checkHostPort(b); err != nil {
			out = append(out, fmt.Errorf("kafka.brokers: %w", err))
		}
	}
	seen := map[string]string{}
	for _, t := range []struct{ key, topic string }{
		{"kafka.campaigns", c.Kafka.Campaigns},
		{"kafka.notifications", c.Kafka.Notifications},
		{"kafka.dead_letters", c.Kafka.DeadLetters},
		{"kafka.progress", c.Kafka.Progress},
	} {
		if !topicName.MatchString(t.topic) || t.topic == "." || t.topic == ".." {
			out = append(out, fmt.Errorf("%s: %q is no topic name: 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'", t.key, t.topic))
		}
		if other, taken := seen[t.topic]; taken {
			out = append(out, fmt.Errorf("%s: %q is %s already; each needs a topic of its own", t.key, t.topic, other))
		}
		seen[t.topic] = t.key
	}
	if c.Kafka.Group == "" {
		out = append(out, errors.New("kafka.group: empty"))
	}
	if _, err := topic.ParseStart(c.Kafka.Start); err != nil {
		out = append(out, fmt.Errorf("kafka.start: %w", err))
	}
	return out
}

// checkHostPort accepts host:port and [v6]:port, and no scheme. A text with an @ is
// not shown: user and password may stand before it.
func checkHostPort(s string) error {
	if strings.Contains(s, "@") {
		return errors.New("user and password do not belong there; write host:port")
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || strings.ContainsAny(host, "/ ") {
		return fmt.Errorf("%q is not host:port", s)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("%q: the port is a number up to 65535", s)
	}
	return nil
}

func (c *Config) checkRest() []error {
	var out []error
	if c.State.Dir == "" {
		out = append(out, errors.New("state.dir: empty"))
	}
	if c.Tracing.SamplePercent > 100 {
		out = append(out, fmt.Errorf("tracing.sample_percent: %d is more than 100", c.Tracing.SamplePercent))
	}
	if raw := c.Tracing.Endpoint; raw != "" {
		u, err := url.Parse(raw)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			out = append(out, errors.New("tracing.endpoint: not an address such as http://collector:4318; a password belongs into OTEL_EXPORTER_OTLP_HEADERS"))
		}
	}
	return out
}

// checkJoin refuses a limit that has no effect: an operator who sets one expects it
// to work. The default may stand, as in the documented sample.
func (c *Config) checkJoin() []error {
	var out []error
	j := c.Join
	switch {
	case j.MaxStaleness <= 0:
		out = append(out, fmt.Errorf("join.max_staleness: %s is not a positive duration", j.MaxStaleness))
	case j.Freshness != string(cdc.Bounded) && j.MaxStaleness != Defaults().Join.MaxStaleness:
		out = append(out, fmt.Errorf("join.max_staleness: it limits nothing with join.freshness: %s; remove it, or set join.freshness: bounded", j.Freshness))
	}
	return out
}
