package kafkaconn

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/config"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
)

// bearer is OAUTHBEARER with a token that is read anew for each connection and for each new
// session on one. The client calls every refusal "unexpected data"; bearer gives the reason.
// It is a hook of the client too: of a refusal by an error code alone, as Redpanda sends it,
// the mechanism does not learn.
type bearer struct {
	cfg config.SASL

	mu   sync.Mutex // guards sent
	sent string     // the token of the last login
}

// Name implements sasl.Mechanism.
func (*bearer) Name() string { return config.OAuthBearer }

// OnBrokerConnect implements kgo.HookBrokerConnect. err is that of the login too.
func (m *bearer) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if errors.Is(err, kerr.SaslAuthenticationFailed) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.cfg.ForgetToken(m.sent)
	}
}

// Authenticate implements sasl.Mechanism.
func (m *bearer) Authenticate(ctx context.Context, host string) (sasl.Session, []byte, error) {
	token, err := m.cfg.RevealToken()
	if err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	m.sent = token
	m.mu.Unlock()
	extensions, err := m.cfg.ParseExtensions()
	if err != nil {
		return nil, nil, err
	}
	session, first, err := oauth.Auth{Token: token, Extensions: extensions}.AsMechanism().Authenticate(ctx, host)
	return bearerSession{session, m.cfg, token}, first, err
}

type bearerSession struct {
	sasl.Session

	cfg   config.SASL
	token string
}

// Challenge implements sasl.Session. A broker refuses a token with a JSON object
// (RFC 7628, section 3.2.2).
func (s bearerSession) Challenge(from []byte) (bool, []byte, error) {
	if len(from) == 0 {
		return s.Session.Challenge(from)
	}
	s.cfg.ForgetToken(s.token)
	why := ""
	var refusal struct {
		Status string `json:"status"`
		Scope  string `json:"scope"`
	}
	if json.Unmarshal(from, &refusal) == nil && refusal.Status != "" {
		why = fmt.Sprintf(": %.100q", refusal.Status)
		if refusal.Scope != "" {
			why += fmt.Sprintf(", it wants the scope %.100q", refusal.Scope)
		}
	}
	_, fix := judgeToken(s.cfg.TokenKey(), s.token)
	return false, nil, &refusedTokenError{"the broker refuses the token of " + s.cfg.TokenKey() + why + "; " + fix}
}

// refusedTokenError is SaslAuthenticationFailed with the reason and what mends it.
type refusedTokenError struct{ text string }

// Error implements error.
func (e *refusedTokenError) Error() string { return e.text }

// Is makes it SaslAuthenticationFailed: the client then tries once more on a new connection.
func (*refusedTokenError) Is(target error) bool { return target == kerr.SaslAuthenticationFailed }

// claims are the claims of a JWT that errors and the doctor show. Only the broker checks them.
type claims struct {
	Subject string  `json:"sub"`
	Expires float64 `json:"exp"` // seconds since 1970
}

// readClaims reads the claims of a token; none where it is no JWT (RFC 7519).
func readClaims(token string) (c claims) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return claims{}
	}
	text, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil || json.Unmarshal(text, &c) != nil {
		return claims{}
	}
	return c
}

// expiryTime returns when the token expires; the zero time where it names none.
func (c claims) expiryTime() time.Time {
	const year9999 = 253402300799
	if c.Expires <= 0 || c.Expires > year9999 {
		return time.Time{}
	}
	return time.Unix(int64(c.Expires), 0).UTC()
}

// tokenPrincipal returns the principal that brokers with default settings see in a token
// that is at hand, "" where a command or an endpoint gives the token.
func tokenPrincipal(cfg config.SASL) string {
	if !cfg.Token.IsSet() {
		return ""
	}
	token, err := cfg.RevealToken()
	if sub := readClaims(token).Subject; err == nil && sub != "" {
		return "User:" + sub
	}
	return ""
}

// judgeToken says what is wrong with a token that a broker has refused, and what mends it.
func judgeToken(key, token string) (kind, fix string) {
	if end := readClaims(token).expiryTime(); !end.IsZero() && time.Now().After(end) {
		return "expired token", fmt.Sprintf("renew the token of %s, which has expired at %s; if that time is to come, set the clock of this machine", key, end.Format(time.RFC3339))
	}
	return "refused token", "give with " + key + " a token that the brokers accept: their sasl.oauthbearer settings name its issuer, audience and scope, and their log says why they refuse this one"
}

// ExplainLogin says why a broker refused a login without user and password, and how to mend
// it. kind is "" for a login with user and password.
func ExplainLogin(cfg config.SASL, err error) (kind, fix string) {
	switch strings.ToUpper(cfg.Mechanism) {
	case config.OAuthBearer:
		token, failed := cfg.RevealToken()
		if failed != nil {
			return "no token", "mend " + cfg.TokenKey() + ", and try it by hand as the daemon's user"
		}
		return judgeToken(cfg.TokenKey(), token)
	case config.AWSMSKIAM:
		if _, failed := cfg.RevealAWS(); failed != nil {
			return "no AWS credentials", "mend kafka.sasl.aws, and try it by hand as the daemon's user"
		}
		if strings.Contains(err.Error(), "cannot determine the region") {
			return "unknown AWS region", "name the brokers in kafka.brokers as Amazon does, or set AWS_REGION in the daemon's environment"
		}
		return "refused AWS credentials", "allow the identity of kafka.sasl.aws kafka-cluster:Connect on the cluster, renew credentials that have expired, and see that the clock of this machine is right: a signature holds for five minutes"
	}
	return "", ""
}
