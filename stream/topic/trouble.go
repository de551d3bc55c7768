package topic

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"syscall"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/portprobe"
)

// connectTrouble is why a broker could not be used, for an operator.
type connectTrouble struct {
	kind, text, fix string
	network         bool // nothing answered at the address
}

// explainRefusal tells apart why a broker could not be used. It may open further connections
// to find out what the port speaks, without sending a secret.
func (a *Access) explainRefusal(ctx context.Context, addr string, err error) connectTrouble {
	t := connectTrouble{text: err.Error()}
	var ok bool
	if t.kind, t.fix, ok = explainCertificates(err); ok {
		return t
	}
	kind, fix := fromNetwork(err)
	if kind != "" && !a.canConnect(ctx, addr) {
		return connectTrouble{kind, t.text, fix, true}
	}
	speaksTLS := portprobe.SpeaksTLS(ctx, addr)
	switch {
	case speaksTLS && a.TLS == nil:
		t.kind, t.fix = "plaintext spoken to a TLS port", "set kafka.tls.enabled: true, and kafka.tls.ca to the authority of the brokers; or name their plaintext port in kafka.brokers"
	case !speaksTLS && a.TLS != nil && portprobe.SpeaksKafka(ctx, addr):
		t.kind, t.fix = "TLS spoken to a plaintext port", "name the TLS port of the brokers in kafka.brokers, or set kafka.tls.enabled: false"
	default:
		t.kind, t.fix = a.fromSASL(ctx, addr, err)
	}
	if t.kind == "" {
		t.kind, t.fix = cmp.Or(kind, "no Kafka answered"), cmp.Or(connectHint(err), "see what listens at "+addr+", and the broker's log")
	}
	return t
}

// canConnect reports whether somebody accepts connections at an address.
func (a *Access) canConnect(ctx context.Context, addr string) bool {
	conn, err := (&net.Dialer{Timeout: a.Limit}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// fromNetwork explains an address where nobody answers; "": it is another error.
func fromNetwork(err error) (kind, fix string) {
	_, noName := errors.AsType[*net.DNSError](err)
	timeout, _ := errors.AsType[net.Error](err)
	switch {
	case noName:
		return "unknown host", "correct the host in kafka.brokers, or the resolver of this machine"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nobody listens there", "start the broker, or correct host and port in kafka.brokers (listeners of the broker, a firewall)"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "no route", "correct the host in kafka.brokers, or the network between"
	case errors.Is(err, context.DeadlineExceeded), timeout != nil && timeout.Timeout():
		return "no answer", "see whether the host is up and a firewall lets the port through"
	}
	return "", ""
}

// fromSASL explains a refused login; "": it is another error. A broker names its
// mechanisms to whoever asks for one that it does not have.
func (a *Access) fromSASL(ctx context.Context, addr string, err error) (kind, fix string) {
	mechanisms, takesSASL := a.readMechanisms(ctx, addr)
	offers := strings.Join(mechanisms, ", ")
	switch has := containsFold(mechanisms, a.Mechanism); {
	case a.Mechanism == "" && takesSASL:
		return "the port wants SASL", "set kafka.sasl.mechanism (the broker offers " + offers + "), username and password; or name a port without SASL in kafka.brokers"
	case a.Mechanism == "":
		return "", ""
	case errors.Is(err, kerr.IllegalSaslState), errors.Is(err, kerr.UnsupportedSaslMechanism) && !takesSASL:
		return "SASL spoken to a port without SASL", connectHint(kerr.IllegalSaslState)
	case errors.Is(err, kerr.UnsupportedSaslMechanism), takesSASL && !has:
		return "wrong SASL mechanism", "set kafka.sasl.mechanism to one that the broker offers: " + offers
	case !takesSASL && !errors.Is(err, kerr.SaslAuthenticationFailed):
		return "", ""
	}
	if a.ExplainLogin != nil {
		if kind, fix := a.ExplainLogin(err); kind != "" {
			return kind, fix
		}
	}
	return "wrong user or password", "correct kafka.sasl.username and kafka.sasl.password: those of a user that the brokers know for " + strings.ToUpper(a.Mechanism)
}

func containsFold(list []string, name string) bool {
	for _, s := range list {
		if strings.EqualFold(s, name) {
			return true
		}
	}
	return false
}

// readMechanisms asks a broker for its SASL mechanisms; ok is false where the port
// takes no SASL, or says nothing.
func (a *Access) readMechanisms(ctx context.Context, addr string) (mechanisms []string, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, min(a.Limit, portprobe.Limit))
	defer cancel()
	client, err := kgo.NewClient(append(a.Unauthenticated(), kgo.SeedBrokers(addr), kgo.RequestRetries(0))...)
	if err != nil {
		return nil, false
	}
	defer client.Close()
	req := kmsg.NewPtrSASLHandshakeRequest()
	req.Mechanism = "NONE-OF-YOURS"
	for _, seed := range client.SeedBrokers() {
		got, err := seed.Request(ctx, req)
		if resp, is := got.(*kmsg.SASLHandshakeResponse); is && err == nil && resp.ErrorCode == kerr.UnsupportedSaslMechanism.Code {
			return resp.SupportedMechanisms, len(resp.SupportedMechanisms) > 0
		}
	}
	return nil, false
}

// dialTLS makes a TLS connection to a broker as the clients do.
func (a *Access) dialTLS(ctx context.Context, addr string) (*tls.Conn, error) {
	cfg, err := a.TLS()
	if err != nil {
		return nil, err
	}
	conn, err := (&tls.Dialer{NetDialer: &net.Dialer{Timeout: a.Limit}, Config: cfg}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	encrypted, ok := conn.(*tls.Conn)
	if !ok {
		return nil, errors.Join(errors.ErrUnsupported, conn.Close())
	}
	return encrypted, nil
}
