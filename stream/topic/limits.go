package topic

import (
	"fmt"
	"slices"
	"strings"
)

// Limits are how large a record the output topics take.
type Limits struct {
	Notification int      // bytes that the notifications topic accepts per batch
	DeadLetter   int      // the same of the dead-letter topic
	guessed      []string // topics of the two whose limit may not be read
	Bootstrap    string   // a broker's address, for the commands that errors name
}

func NewLimits(c *Cluster, cfg Config) Limits {
	return Limits{
		Notification: c.Settings[cfg.Notifications].maxMessage(), DeadLetter: c.Settings[cfg.DeadLetters].maxMessage(), Bootstrap: c.Bootstrap,
		guessed: slices.DeleteFunc([]string{cfg.Notifications, cfg.DeadLetters}, func(topic string) bool { return c.Settings[topic] != nil }),
	}
}

// MaxCampaign is how large a message is read whole. Escapes make a text six times
// as long at most as the notification has it.
func (l *Limits) MaxCampaign() int { return min(6*l.Notification, MaxBatch) }

// RaiseHint tells what mends a topic that does not accept what is decided.
func (l *Limits) RaiseHint(principal string) string {
	raise := "put the topics' max.message.bytes back to what it was, or higher"
	if len(l.guessed) == 0 {
		return raise
	}
	return fmt.Sprintf("let max.message.bytes of topic %s be read, which is taken for %d: %s; where it was lowered, %s",
		strings.Join(l.guessed, " and "), DefaultMaxMessage, grantCommand(l.Bootstrap, principal, "DescribeConfigs", "--topic "+strings.Join(l.guessed, " --topic ")), raise)
}
