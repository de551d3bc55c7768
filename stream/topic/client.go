package topic

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/portprobe"
	"dinnerbell/stream/record"
)

// TransactionTimeout bounds how long a dead owner's open transaction can hold up
// read_committed consumers, where nobody takes the lane over before.
const TransactionTimeout = 20 * time.Second

// NewClient makes a client of the cluster, with more options than those that reach
// it. It does not connect: the first request does.
func (c Config) NewClient(more ...kgo.Opt) (*kgo.Client, error) {
	opts, err := c.ClientOptions()
	if err != nil {
		return nil, fmt.Errorf("read kafka settings: %w", err)
	}
	client, err := kgo.NewClient(append(opts, more...)...)
	if err != nil {
		return nil, fmt.Errorf("make kafka client: %w", err)
	}
	return client, nil
}

// NewProducer makes the transactional client of a lane. It cuts batches to what the
// topics accept, and puts progress records into the partition that they name.
func (c Config) NewProducer(lane int32, limits Limits) (*kgo.Client, error) {
	sticky, manual := kgo.StickyKeyPartitioner(nil), kgo.ManualPartitioner()
	return c.NewClient(
		kgo.TransactionalID(c.TransactionalID(lane)),
		kgo.TransactionTimeout(TransactionTimeout),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(TransactionTimeout), // nothing but full batches leaves before Flush: fewer requests
		kgo.MaxBufferedRecords(1<<17),
		kgo.ProducerBatchMaxBytesFn(func(name string) int32 {
			if name == c.DeadLetters {
				return int32(limits.DeadLetter)
			}
			return int32(limits.Notification)
		}),
		kgo.RecordPartitioner(partitionerFunc(func(name string) kgo.TopicPartitioner {
			if name == c.Progress {
				return manual.ForTopic(name)
			}
			return sticky.ForTopic(name)
		})),
	)
}

type partitionerFunc func(name string) kgo.TopicPartitioner

// ForTopic implements kgo.Partitioner.
func (f partitionerFunc) ForTopic(name string) kgo.TopicPartitioner { return f(name) }

// CloseClient closes a client within five seconds: closing a client whose broker is
// gone has been seen to hang (franz-go issues 753, 754).
func CloseClient(client *kgo.Client, log *slog.Logger, lane int32) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		client.Close()
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		log.Warn("kafka client is slow to close; going on without it", "lane", lane)
	}
}

// DeadLetterRecord returns the record of a dead letter: the refused key and value
// untouched; the reason and the origin in headers before the message's own headers.
// The record gets a new timestamp: brokers refuse timestamps far from now, and a
// producer's clock must not stop the lane.
func DeadLetterRecord(d *record.DeadLetter, topic string) *kgo.Record {
	r := &kgo.Record{Topic: topic, Key: d.Key, Value: d.Value}
	for _, h := range d.RecordHeaders() {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	return r
}

// RetryHeader is the header of a message that `dead-letters retry` has sent again: its
// campaign is joined once more, even where the message repeats the accepted one, because
// the feedback table refused rows of that one.
const RetryHeader = "dinnerbell-retry"

// RetryRecord returns the record with which a dead letter's message is sent again to the
// partition that it came from. A header of an earlier retry is not repeated.
func RetryRecord(topic string, partition int32, key, value []byte, headers []kgo.RecordHeader) *kgo.Record {
	headers = slices.DeleteFunc(slices.Clone(headers), func(h kgo.RecordHeader) bool { return h.Key == RetryHeader })
	return &kgo.Record{Topic: topic, Partition: partition, Key: key, Value: value, Headers: append(headers, kgo.RecordHeader{Key: RetryHeader, Value: []byte("1")})}
}

// explainConnect adds a hint to the error of a first request that failed because
// client and broker do not speak the same protocol: the setting to change. It returns
// every other error unchanged.
func explainConnect(err error) error {
	if hint := connectHint(err); hint != "" {
		return fmt.Errorf("%w (%s)", err, hint)
	}
	return err
}

// MendConnection returns what mends the error of a connection to the brokers: its own
// remedy, or the command that finds one.
func MendConnection(err error) string {
	return cmp.Or(connectHint(err), "dinnerbell doctor names the cause")
}

// connectHint returns the hint for an error, "" for an error about anything else.
func connectHint(err error) string {
	const (
		wantsTLS = "does the port want TLS? then set kafka.tls.enabled: true; else name another port in kafka.brokers"
		takesTLS = "the port takes no TLS: name the brokers' TLS port in kafka.brokers, or set kafka.tls.enabled: false"
	)
	switch {
	case err == nil:
		return ""
	case errors.Is(err, kerr.IllegalSaslState):
		return "the port takes no SASL: name the brokers' SASL port in kafka.brokers, or leave out kafka.sasl.mechanism"
	case errors.Is(err, kerr.UnsupportedSaslMechanism):
		return "set kafka.sasl.mechanism to one of the brokers' sasl.enabled.mechanisms"
	}
	// What is made SaslAuthenticationFailed by an Is of its own says itself what mends it.
	if failed, ok := errors.AsType[*kerr.Error](err); ok && failed == kerr.SaslAuthenticationFailed {
		return "are kafka.sasl.username and kafka.sasl.password, the token of OAUTHBEARER, or the keys of kafka.sasl.aws, those of a user that the brokers know for kafka.sasl.mechanism?"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return takesTLS
	}
	if _, fix, ok := explainCertificates(err); ok {
		return fix
	}
	if _, fix := fromNetwork(err); fix != "" {
		return fix
	}
	text := err.Error()
	if _, ok := errors.AsType[*kgo.ErrFirstReadEOF](err); ok {
		// Only the error's text shows which of the three it is.
		switch {
		case strings.Contains(text, "after a dial"):
			return takesTLS
		case strings.Contains(text, "during api versions negotiation"):
			return wantsTLS
		}
		return "does the port want SASL? then set kafka.sasl.mechanism, username and password; else name another port in kafka.brokers"
	}
	if strings.Contains(text, "tls alert record") {
		return wantsTLS
	}
	return ""
}

// explainCertificates explains a certificate that was refused, the brokers' or the
// client's; ok is false for every other error.
func explainCertificates(err error) (kind, fix string, ok bool) {
	names := portprobe.Names{Server: "the brokers", CA: "kafka.tls.ca", Host: "kafka.brokers", Verify: "kafka.tls.server_name"}
	if kind, fix, ok = portprobe.ExplainCertificate(err, time.Now(), names); ok {
		return kind, fix, true
	}
	return portprobe.ExplainClientCertificate(err, "kafka.tls.cert and kafka.tls.key", "the ssl.truststore of the port")
}
