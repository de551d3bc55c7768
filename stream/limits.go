package stream

import (
	"fmt"
	"slices"
	"strings"

	"dinnerbell/stream/topic"
)

// topicLimits are how large a record the output topics take.
type topicLimits struct {
	record    int      // bytes that the notifications topic accepts per batch
	dead      int      // the same of the dead-letter topic
	guessed   []string // topics of the two whose limit may not be read
	bootstrap string   // a broker's address, for the commands that errors name
}

func newTopicLimits(c *cluster, cfg KafkaConfig) topicLimits {
	return topicLimits{
		record: c.settings[cfg.Notifications].maxMessage(), dead: c.settings[cfg.DeadLetters].maxMessage(), bootstrap: c.bootstrap,
		guessed: slices.DeleteFunc([]string{cfg.Notifications, cfg.DeadLetters}, func(topic string) bool { return c.settings[topic] != nil }),
	}
}

// maxInput is how large a message is read whole. Escapes make a text six times
// as long at most as the notification has it.
func (l *topicLimits) maxInput() int { return min(6*l.record, topic.MaxBatch) }

// raiseHint tells what mends a topic that does not accept what is decided.
func (l *topicLimits) raiseHint(principal string) string {
	raise := "put the topics' max.message.bytes back to what it was, or higher"
	if len(l.guessed) == 0 {
		return raise
	}
	return fmt.Sprintf("let max.message.bytes of topic %s be read, which is taken for %d: %s; where it was lowered, %s",
		strings.Join(l.guessed, " and "), defaultMaxMessage, grantRight(l.bootstrap, principal, "DescribeConfigs", "--topic "+strings.Join(l.guessed, " --topic ")), raise)
}
