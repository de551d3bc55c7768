package kafkaconn

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/config"

	"github.com/twmb/franz-go/pkg/kerr"
)

// loadKeys makes the settings of kafka.sasl as the file would.
func loadKeys(t *testing.T, keys string) config.SASL {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte("kafka: {sasl: {"+keys+"}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path, config.Env{})
	if err != nil {
		t.Fatal(err)
	}
	return cfg.Kafka.SASL
}

// newJWT returns a token without a signature.
func newJWT(subject string, end time.Time) string {
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"none"}`)) + "." + part(fmt.Appendf(nil, `{"sub":%q,"exp":%d}`, subject, end.Unix())) + "."
}

// What is sent is the message of RFC 7628. A refusal says why, names the key and what mends
// it, and shows no token.
func TestBearer(t *testing.T) {
	t.Parallel()
	const refusal = `{"status":"invalid_token","scope":"kafka","openid-configuration":"x"}`
	for end, want := range map[time.Time]string{
		time.Now().Add(time.Hour):  `the broker refuses the token of kafka.sasl.token: "invalid_token", it wants the scope "kafka"; give with kafka.sasl.token a token that the brokers accept`,
		time.Now().Add(-time.Hour): `; renew the token of kafka.sasl.token, which has expired at ` + time.Now().Add(-time.Hour).UTC().Format("2006-01-02T"),
	} {
		token := newJWT("bell", end)
		cfg := loadKeys(t, "mechanism: oauthbearer, token: "+token+", extensions: [a=b]")
		session, first, err := saslMechanism(cfg).Authenticate(t.Context(), "k:9092")
		if err != nil || string(first) != "n,,\x01auth=Bearer "+token+"\x01a=b\x01\x01" {
			t.Fatalf("sent %q, %v", first, err)
		}
		if done, _, err := session.Challenge(nil); !done || err != nil {
			t.Errorf("accepted: %v, %v", done, err)
		}
		if _, _, err := session.Challenge([]byte(refusal)); !errors.Is(err, kerr.SaslAuthenticationFailed) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), token) {
			t.Errorf("refused: %v; want %s", err, want)
		}
		if _, _, err := session.Challenge([]byte("garbage")); !errors.Is(err, kerr.SaslAuthenticationFailed) {
			t.Errorf("refused with garbage: %v", err)
		}
		if p := Principal(config.Kafka{SASL: cfg}); p != "User:bell" {
			t.Errorf("principal %q", p)
		}
	}
	for _, odd := range []string{"", "a.b", "a.!.c", "a.e30.c", "....", "a." + base64.RawURLEncoding.EncodeToString([]byte(`{"exp":1e300}`)) + ".c"} {
		if c := readClaims(odd); !c.expiryTime().IsZero() || c.Subject != "" {
			t.Errorf("%q has claims %+v", odd, c)
		}
	}
}

// The doctor's name for each refusal.
func TestExplainLogin(t *testing.T) {
	t.Parallel()
	refused := fmt.Errorf("broker: %w", kerr.SaslAuthenticationFailed)
	noRegion := errors.New(`cannot determine the region in "kafka"`)
	for _, c := range []struct {
		keys string
		err  error
		want string
	}{
		{"mechanism: PLAIN", refused, ""},
		{"mechanism: OAUTHBEARER, token: " + newJWT("b", time.Now().Add(time.Hour)), refused, "refused token"},
		{"mechanism: OAUTHBEARER, token: opaque", refused, "refused token"},
		{"mechanism: OAUTHBEARER, token: " + newJWT("b", time.Now().Add(-time.Hour)), refused, "expired token"},
		{"mechanism: OAUTHBEARER, token_command: ['false']", refused, "no token"},
		{"mechanism: AWS_MSK_IAM, aws: {access_key_id: a, secret_access_key: b}", refused, "refused AWS credentials"},
		{"mechanism: AWS_MSK_IAM, aws: {access_key_id: a, secret_access_key: b}", noRegion, "unknown AWS region"},
		{"mechanism: AWS_MSK_IAM, aws: {credentials_command: ['false']}", refused, "no AWS credentials"},
	} {
		if kind, fix := ExplainLogin(loadKeys(t, c.keys), c.err); kind != c.want || (fix == "") != (kind == "") {
			t.Errorf("%.50s: %q, %q; want %q", c.keys, kind, fix, c.want)
		}
	}
}
