package topic

import (
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Config names the Kafka side.
type Config struct {
	// ClientOptions returns the options that reach the cluster: brokers, TLS, SASL.
	// NewClient calls it each time, so that rotated credentials are picked up.
	ClientOptions func() ([]kgo.Opt, error)
	// Principal is the name that the brokers know this client by, such as
	// "User:dinnerbell". Hints about missing rights show it. Default "User:NAME".
	Principal string
	// IAM says that policies of AWS grant the rights of this client, as Amazon MSK has it,
	// and no ACLs.
	IAM           bool
	Campaigns     string
	Notifications string
	DeadLetters   string
	Progress      string
	Group         string
	// InstanceID makes this daemon a static member of the group: after a
	// restart it gets its lanes back at once. Unique per daemon.
	InstanceID string
	// Start is the position from which a new deployment reads the campaigns topic:
	// "earliest" (default), "latest" or an RFC 3339 time.
	Start string
}

// The words of Config.Start.
const (
	StartEarliest = "earliest"
	StartLatest   = "latest"
)

// ParseStart returns the time that a Config.Start names; zero for the two words.
func ParseStart(start string) (time.Time, error) {
	if start == StartEarliest || start == StartLatest {
		return time.Time{}, nil
	}
	at, err := time.Parse(time.RFC3339, start)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is none of %s, %s and a time such as 2026-01-31T08:00:00Z", start, StartEarliest, StartLatest)
	}
	return at, nil
}

// WithDefaults returns the configuration with its defaults filled in.
func (c Config) WithDefaults() Config {
	if c.Principal == "" {
		c.Principal = "User:NAME"
	}
	if c.Start == "" {
		c.Start = StartEarliest
	}
	return c
}

// TransactionalID returns the transactional id of a lane's producer.
func (c Config) TransactionalID(lane int32) string { return fmt.Sprintf("%s-%d", c.Group, lane) }
