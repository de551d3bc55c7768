// Package kafkaconn makes the options of every Kafka client: brokers, TLS, SASL, and
// bounds on what a broker may ask for before it has accepted the client.
package kafkaconn

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"strings"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/config"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/aws"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// Options returns the options of every Kafka client of the daemon: brokers, TLS and
// SASL. Certificates and credentials are read again for each connection, so that a
// rotation needs no restart.
func Options(cfg config.Kafka, log *slog.Logger) []kgo.Opt {
	opts := []kgo.Opt{
		kgo.SeedBrokers(cfg.Brokers...),
		kgo.ClientID("dinnerbell"),
		kgo.WithLogger(kafkaLogger{log}),
	}
	dial := (&net.Dialer{Timeout: dialTimeout}).DialContext
	if cfg.TLS.Enabled {
		dial = tlsDialer(cfg.TLS)
	}
	opts = append(opts, kgo.Dialer(boundAnswers(dial, unauthenticatedAnswers(cfg.SASL))))
	if m := saslMechanism(cfg.SASL); m != nil {
		opts = append(opts, kgo.SASL(m))
		if hook, ok := m.(kgo.HookBrokerConnect); ok {
			opts = append(opts, kgo.WithHooks(hook))
		}
	}
	return opts
}

const dialTimeout = 10 * time.Second

// Principal returns the principal that brokers with default settings give this
// client; "" if it depends on the broker, as with the name in a certificate.
func Principal(cfg config.Kafka) string {
	switch strings.ToUpper(cfg.SASL.Mechanism) {
	case config.OAuthBearer:
		return tokenPrincipal(cfg.SASL)
	case config.AWSMSKIAM:
		return "" // the ARN of a role, which the keys do not show
	}
	if cfg.SASL.Mechanism != "" {
		user, err := cfg.SASL.Username.Reveal()
		if err != nil {
			return ""
		}
		return "User:" + user
	}
	if cfg.TLS.Cert != "" {
		return ""
	}
	return "User:ANONYMOUS"
}

// tlsDialer connects with the certificates as they are on disk now.
func tlsDialer(cfg config.TLS) dialFunc {
	return func(ctx context.Context, network, host string) (net.Conn, error) {
		tc, err := cfg.Config()
		if err != nil {
			return nil, err
		}
		d := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: tc}
		return d.DialContext(ctx, network, host)
	}
}

// saslMechanism returns the mechanism, nil without SASL. Validate has checked the
// name.
func saslMechanism(cfg config.SASL) sasl.Mechanism {
	credentials := func() (user, password string, err error) {
		if user, err = cfg.Username.Reveal(); err != nil {
			return "", "", err
		}
		password, err = cfg.Password.Reveal()
		return user, password, err
	}
	scramAuth := func(context.Context) (scram.Auth, error) {
		user, password, err := credentials()
		return scram.Auth{User: user, Pass: password}, err
	}
	switch strings.ToUpper(cfg.Mechanism) {
	case "PLAIN":
		return plain.Plain(func(context.Context) (plain.Auth, error) {
			user, password, err := credentials()
			return plain.Auth{User: user, Pass: password}, err
		})
	case "SCRAM-SHA-256":
		return boundedScram{scram.Sha256(scramAuth)}
	case "SCRAM-SHA-512":
		return boundedScram{scram.Sha512(scramAuth)}
	case config.OAuthBearer:
		return &bearer{cfg: cfg}
	case config.AWSMSKIAM:
		return aws.ManagedStreamingIAM(func(context.Context) (aws.Auth, error) {
			found, err := cfg.RevealAWS()
			return aws.Auth{AccessKey: found.AccessKeyID, SecretKey: found.SecretAccessKey, SessionToken: found.SessionToken, UserAgent: "dinnerbell"}, err
		})
	}
	return nil
}

// kafkaLogger passes the client's own messages on. The client logs every reconnect
// as information, many a second while a broker is down; these messages go to debug.
type kafkaLogger struct{ log *slog.Logger }

// Level returns the level from which the client formats messages.
func (l kafkaLogger) Level() kgo.LogLevel {
	ctx := context.Background()
	switch {
	case l.log.Enabled(ctx, slog.LevelDebug):
		return kgo.LogLevelInfo
	case l.log.Enabled(ctx, slog.LevelWarn):
		return kgo.LogLevelWarn
	}
	return kgo.LogLevelError
}

// groupErrored is the client's message about an error that it also returns from a
// poll; package stream logs that one.
const groupErrored = "group manage loop errored"

// Log writes one message.
func (l kafkaLogger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	to, serious := map[kgo.LogLevel]slog.Level{kgo.LogLevelError: slog.LevelError, kgo.LogLevelWarn: slog.LevelWarn}[level]
	if !serious || msg == groupErrored {
		to = slog.LevelDebug
	}
	for i := 0; i < len(keyvals); i += 2 {
		if keyvals[i] == "err" {
			keyvals[i] = "error" // as everywhere in the log
		}
	}
	l.log.With("said", msg).Log(context.Background(), to, "kafka client", keyvals...)
}
