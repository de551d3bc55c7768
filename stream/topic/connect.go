package topic

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// explainConnect adds a hint to the error of a first request that failed because
// client and broker do not speak the same protocol: the setting to change. It returns
// every other error unchanged.
func explainConnect(err error) error {
	if hint := connectHint(err); hint != "" {
		return fmt.Errorf("%w (%s)", err, hint)
	}
	return err
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
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return "are kafka.sasl.username and kafka.sasl.password those of a user that the brokers know for kafka.sasl.mechanism?"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return takesTLS
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "set kafka.tls.ca to the file of the authority that signed the brokers' certificates"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "name the brokers in kafka.brokers as their certificates do, or set kafka.tls.server_name"
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
	switch {
	case strings.Contains(text, "tls alert record"):
		return wantsTLS
	case strings.Contains(text, "remote error: tls: certificate required"), strings.Contains(text, "remote error: tls: bad certificate"), strings.Contains(text, "remote error: tls: unknown certificate authority"):
		return "the port wants a client certificate that it trusts: set kafka.tls.cert and kafka.tls.key"
	}
	return ""
}
