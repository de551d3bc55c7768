package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/cmd/dinnerbell/internal/logging"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/stream/operator"
)

// deadLettersCmd groups the commands about refused messages. They read Kafka
// themselves and need no daemon.
type deadLettersCmd struct {
	List  deadLettersListCmd  `cmd:"" help:"List the refused messages and the reasons."`
	Retry deadLettersRetryCmd `cmd:"" help:"Send messages that would be accepted now to the campaigns topic again."`
}

// deadLettersFilter are the flags that choose dead letters.
type deadLettersFilter struct {
	Reason filledText `placeholder:"TEXT" help:"Only these: a class of reasons, such as bad_time, or a part of the reason's text."`
	Since  filledText `placeholder:"TIME" help:"Only what was refused since then: an RFC 3339 time, or a duration ago such as 2h or 7d."`
}

func (f *deadLettersFilter) parse(now time.Time) (out operator.LetterFilter, err error) {
	out.Reason = string(f.Reason)
	if f.Since != "" {
		var ok bool
		if out.Since, ok = parseTime(string(f.Since), now); !ok {
			return out, fmt.Errorf("%w: --since %q is neither an RFC 3339 time nor a duration ago such as 2h or 7d", errUsage, f.Since)
		}
	}
	return out, nil
}

// explainNone names the classes of reasons if none was found and the flag names no class: it
// may be misspelled.
func (f *deadLettersFilter) explainNone(a *invocation, found int) {
	if found > 0 || f.Reason == "" || operator.ReasonClassOf(string(f.Reason)) != "" {
		return
	}
	_, _ = fmt.Fprintf(a.messages, "dinnerbell: no dead letter has %q in its reason, and no class has that name; the classes are %s\n", string(f.Reason), operator.ReasonClassNames()) // nowhere to report a failing stderr
}

type deadLettersListCmd struct {
	deadLettersFilter
	Summary bool `help:"Only the number of dead letters of each class of reasons."`
	JSON    bool `help:"One JSON object a line, with the message."`
}

// deadLetterItem is one line of the listing.
type deadLetterItem struct {
	Partition int32     `json:"partition"` // of the dead-letter topic
	Offset    int64     `json:"offset"`
	Time      time.Time `json:"time"`       // of the message
	Refused   time.Time `json:"refused_at"` // of the dead letter
	Topic     string    `json:"from_topic"`
	From      int32     `json:"from_partition"`
	FromAt    int64     `json:"from_offset"`
	Reason    string    `json:"reason"`
	Class     string    `json:"reason_class,omitempty"`
	Truncated string    `json:"truncated,omitempty"`
	Bytes     int       `json:"bytes"`
	// Value is the message if it is text, otherwise Base64 is.
	Value  string `json:"value,omitempty"`
	Base64 []byte `json:"value_base64,omitempty"`
}

// Help shows how it is used.
func (*deadLettersListCmd) Help() string {
	return `Example:
  dinnerbell dead-letters list --json | jq .reason`
}

// Run lists the messages that the topic holds now, in the order of the topic.
func (c *deadLettersListCmd) Run(ctx context.Context, a *invocation) error {
	filter, err := c.parse(time.Now())
	if err != nil {
		return err
	}
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	claims := daemon.ClaimConfig(cfg, a.newLogger(cfg))
	lines := json.NewEncoder(a.stdout)
	summary := deadLettersSummary{}
	found := 0
	err = operator.ReadDeadLetters(ctx, claims.Kafka, claims.Logger, filter, func(d *operator.DeadLetter) error {
		found++
		if c.Summary {
			summary.add(d)
			return nil
		}
		item := newDeadLetterItem(d)
		if c.JSON {
			return lines.Encode(item)
		}
		return printDeadLetter(a.stdout, &item)
	})
	if err == nil && c.Summary {
		err = summary.print(a.stdout, c.JSON)
	}
	if err != nil {
		return fmt.Errorf("list dead letters: %w", err)
	}
	c.explainNone(a, found)
	return nil
}

func newDeadLetterItem(d *operator.DeadLetter) deadLetterItem {
	item := deadLetterItem{
		Partition: d.Partition, Offset: d.Offset, Time: d.Time.UTC(), Refused: d.Refused.UTC(), Topic: d.Topic, From: d.From, FromAt: d.FromAt,
		Reason: d.Reason, Class: string(d.Class), Truncated: d.Truncated, Bytes: len(d.Value),
	}
	if utf8.Valid(d.Value) {
		item.Value = string(d.Value)
	} else {
		item.Base64 = d.Value
	}
	return item
}

// printDeadLetter writes one line of text, which begins with the name that retry
// takes.
func printDeadLetter(out io.Writer, d *deadLetterItem) error {
	from := "unknown"
	if d.Topic != "" {
		from = fmt.Sprintf("%s/%d@%d", terminal.Escape(d.Topic), d.From, d.FromAt)
	}
	_, err := fmt.Fprintf(out, "%d:%d  %s  from %s  %s  %s: %s\n", d.Partition, d.Offset, d.Refused.Format(time.RFC3339), from, terminal.Bytes(int64(d.Bytes)),
		classLabel(d.Class), terminal.Escape(logging.Line(d.Reason)))
	return err
}

type deadLettersRetryCmd struct {
	deadLettersFilter
	Which []string `arg:"" optional:"" placeholder:"PARTITION:OFFSET" help:"Messages to send, by the names that list shows."`
	All   bool     `help:"All messages that would be accepted now. --reason and --since choose from them."`
	JSON  bool     `help:"One JSON object a line."`
}

type deadLetterPlace struct {
	partition int32
	offset    int64
}

// Help shows how it is used.
func (*deadLettersRetryCmd) Help() string {
	return `Examples:
  dinnerbell dead-letters retry 0:4
  dinnerbell dead-letters retry --all`
}

// Run prints the outcome for each message. It fails if a message that was named
// could not be sent.
func (c *deadLettersRetryCmd) Run(ctx context.Context, a *invocation) error {
	wanted, err := c.parsePlaces()
	if err != nil {
		return err
	}
	filter, err := c.parse(time.Now())
	if err != nil {
		return err
	}
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	claims := daemon.ClaimConfig(cfg, a.newLogger(cfg))
	lines := json.NewEncoder(a.stdout)
	sent, left := 0, 0
	err = operator.RetryDeadLetters(ctx, claims.Kafka, claims.Logger, filter, func(d *operator.DeadLetter) bool {
		return len(c.Which) == 0 || wanted[deadLetterPlace{d.Partition, d.Offset}]
	}, func(r operator.Retried) error {
		delete(wanted, deadLetterPlace{r.Partition, r.Offset})
		if r.SentTo >= 0 {
			sent++
		} else {
			left++
		}
		if c.JSON {
			return lines.Encode(r)
		}
		return printRetried(a.stdout, &r)
	})
	switch {
	case err != nil:
		return fmt.Errorf("retry dead letters: %w", err)
	case len(c.Which) == 0:
		c.explainNone(a, sent+left)
		return c.reportRetries(a, sent, left)
	}
	var errs []error
	for p := range wanted {
		errs = append(errs, fmt.Errorf("the topic does not hold dead letter %d:%d", p.partition, p.offset))
	}
	if left > 0 {
		errs = append(errs, fmt.Errorf("%d of %d were not sent", left, sent+left))
	}
	return errors.Join(errs...)
}

// reportRetries prints the counts of a retry by flags. It returns an error if there were
// messages to send and each of them would be refused again.
func (c *deadLettersRetryCmd) reportRetries(a *invocation, sent, left int) error {
	if sent == 0 && left > 0 {
		return fmt.Errorf("none of %d dead letters was sent again; its line says why", left)
	}
	_, err := fmt.Fprintf(a.messages, "%d sent again, %d left\n", sent, left)
	return err
}

func (c *deadLettersRetryCmd) parsePlaces() (map[deadLetterPlace]bool, error) {
	if (c.All || c.Reason != "" || c.Since != "") == (len(c.Which) > 0) {
		return nil, fmt.Errorf("%w: name dead letters as PARTITION:OFFSET, or give --all, --reason or --since", errUsage)
	}
	out := map[deadLetterPlace]bool{}
	for _, text := range c.Which {
		p, o, ok := strings.Cut(text, ":")
		partition, err := strconv.ParseInt(p, 10, 32)
		offset, err2 := strconv.ParseInt(o, 10, 64)
		if err != nil || err2 != nil || !ok {
			return nil, fmt.Errorf("%w: %q is not PARTITION:OFFSET", errUsage, text)
		}
		out[deadLetterPlace{int32(partition), offset}] = true
	}
	return out, nil
}

func printRetried(out io.Writer, r *operator.Retried) error {
	if r.SentTo < 0 {
		_, err := fmt.Fprintf(out, "%d:%d  left: %s\n", r.Partition, r.Offset, terminal.Escape(logging.Line(r.Reason)))
		return err
	}
	_, err := fmt.Fprintf(out, "%d:%d  sent again, at offset %d\n", r.Partition, r.Offset, r.SentTo)
	return err
}
