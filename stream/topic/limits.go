package topic

import (
	"fmt"
	"slices"
	"strings"
)

// Limits are the sizes of batches that the output topics accept.
type Limits struct {
	Notification int      // bytes per batch of the notifications topic
	DeadLetter   int      // bytes per batch of the dead-letter topic
	guessed      []string // those of the two topics whose limit may not be read
	Bootstrap    string   // a broker's address, for the commands in errors
}

// NewLimits returns the limits of a cluster's output topics.
func NewLimits(c *Cluster, cfg Config) Limits {
	return Limits{
		Notification: c.Settings[cfg.Notifications].maxMessage(), DeadLetter: c.Settings[cfg.DeadLetters].maxMessage(), Bootstrap: c.Bootstrap,
		guessed: slices.DeleteFunc([]string{cfg.Notifications, cfg.DeadLetters}, func(topic string) bool { return c.Settings[topic] != nil }),
	}
}

// MaxCampaign returns the size up to which a campaign message is read whole. JSON
// escapes make a text at most six times as long as in the notification.
func (l *Limits) MaxCampaign() int { return min(6*l.Notification, MaxBatch) }

// RaiseHint returns the command that mends a topic that does not accept the records of
// a decided step.
func (l *Limits) RaiseHint(principal string) string {
	raise := "put the topics' max.message.bytes back to what it was, or higher"
	if len(l.guessed) == 0 {
		return raise
	}
	return fmt.Sprintf("let max.message.bytes of topic %s be read, which is taken for %d: %s; where it was lowered, %s",
		strings.Join(l.guessed, " and "), DefaultMaxMessage, grantCommand(l.Bootstrap, principal, "DescribeConfigs", "--topic "+strings.Join(l.guessed, " --topic ")), raise)
}
