package kafkaconn

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/internal/testenv/envtest"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// loginBroker is a broker that asks accept about the first message of each login, and ends
// each session after two seconds (KIP-368).
type loginBroker struct {
	addr string

	mu     sync.Mutex // guards what follows
	logins int
	// accept returns the answer's data, and why the login is refused.
	accept func(first string) (answer, refusal string)
}

// startLoginBroker starts a broker with one mechanism.
func startLoginBroker(t *testing.T, mechanism string) *loginBroker {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	b := &loginBroker{addr: cluster.ListenAddrs()[0]}
	cluster.ControlKey(int16(kmsg.SASLHandshake), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if req, ok := kreq.(*kmsg.SASLHandshakeRequest); !ok || req.Mechanism != mechanism {
			t.Errorf("handshake %+v", kreq)
		}
		resp := kmsg.NewPtrSASLHandshakeResponse()
		resp.Version, resp.SupportedMechanisms = kreq.GetVersion(), []string{mechanism}
		return resp, nil, true
	})
	cluster.ControlKey(int16(kmsg.SASLAuthenticate), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		resp := kmsg.NewPtrSASLAuthenticateResponse()
		resp.Version, resp.SessionLifetimeMillis = kreq.GetVersion(), 2000
		if req, ok := kreq.(*kmsg.SASLAuthenticateRequest); ok {
			b.answer(string(req.SASLAuthBytes), resp)
		}
		return resp, nil, true
	})
	return b
}

func (b *loginBroker) answer(first string, resp *kmsg.SASLAuthenticateResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.logins++
	answer, refusal := b.accept(first)
	resp.SASLAuthBytes = []byte(answer)
	if refusal != "" {
		resp.ErrorCode, resp.ErrorMessage = kerr.SaslAuthenticationFailed.Code, &refusal
	}
}

// acceptOnly has the broker judge later logins with accept.
func (b *loginBroker) acceptOnly(accept func(first string) (answer, refusal string)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.logins, b.accept = 0, accept
}

func (b *loginBroker) countLogins() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.logins
}

// newLoginClient makes a client that logs in with these keys of kafka.sasl.
func newLoginClient(t *testing.T, b *loginBroker, keys string) *kgo.Client {
	t.Helper()
	cfg := config.Kafka{Brokers: []string{b.addr}, SASL: loadKeys(t, keys)}
	client, err := kgo.NewClient(append(Options(cfg, slog.New(slog.DiscardHandler)), kgo.RequestRetries(0))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// renews checks that a client logs in anew when its session ends.
func (b *loginBroker) renews(t *testing.T, client *kgo.Client) {
	t.Helper()
	envtest.Until(t, envtest.Patience, func() error {
		if err := client.Ping(t.Context()); err != nil {
			t.Error(err)
		}
		if b.countLogins() == 0 {
			return fmt.Errorf("no login")
		}
		return nil
	})
}

// A broker gets the token, and the token of then when the session ends; the client's error
// has the broker's reason and the key.
func TestBearerLogin(t *testing.T) {
	t.Parallel()
	b, file := startLoginBroker(t, "OAUTHBEARER"), filepath.Join(t.TempDir(), "token")
	use := func(token string) {
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		b.acceptOnly(func(first string) (string, string) {
			if first != "n,,\x01auth=Bearer "+token+"\x01\x01" {
				return `{"status":"invalid_token"}`, ""
			}
			return "", ""
		})
	}
	use("first.token.x")
	const keys = "mechanism: OAUTHBEARER, token: '${file:"
	client := newLoginClient(t, b, keys+file+"}'")
	if err := client.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	use("second.token.x")
	b.renews(t, client)
	b.acceptOnly(func(string) (string, string) { return `{"status":"invalid_token"}`, "" })
	if err := newLoginClient(t, b, keys+file+"}'").Ping(t.Context()); err == nil || !strings.Contains(err.Error(), `refuses the token of kafka.sasl.token: "invalid_token"`) || strings.Contains(err.Error(), "second") {
		t.Errorf("a refused token: %v", err)
	}
}

// signAWS returns the signature of Signature Version 4 over a login's other fields, as AWS
// documents it for presigned requests
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html).
func signAWS(sent map[string]string, secret string) string {
	escape := func(s string) string {
		var out strings.Builder
		for _, c := range []byte(s) {
			if strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~", c) >= 0 {
				out.WriteByte(c)
			} else {
				fmt.Fprintf(&out, "%%%02X", c)
			}
		}
		return out.String()
	}
	names := map[string]string{
		"action": "Action", "x-amz-algorithm": "X-Amz-Algorithm", "x-amz-credential": "X-Amz-Credential", "x-amz-date": "X-Amz-Date",
		"x-amz-expires": "X-Amz-Expires", "x-amz-security-token": "X-Amz-Security-Token", "x-amz-signedheaders": "X-Amz-SignedHeaders",
	}
	var query []string
	for field, name := range names {
		if value, ok := sent[field]; ok {
			query = append(query, name+"="+escape(value))
		}
	}
	slices.Sort(query)
	request := sha256.Sum256([]byte("GET\n/\n" + strings.Join(query, "&") + "\nhost:" + sent["host"] + "\n\nhost\n" + hex.EncodeToString(sha256.New().Sum(nil))))
	_, scope, _ := strings.Cut(sent["x-amz-credential"], "/")
	key := []byte("AWS4" + secret)
	for _, part := range append(strings.Split(scope, "/"), "AWS4-HMAC-SHA256\n"+sent["x-amz-date"]+"\n"+scope+"\n"+hex.EncodeToString(request[:])) {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	return hex.EncodeToString(key)
}

// judgeAWS is what MSK does with a login: why it refuses one that is not signed by the key
// for the host and the region, or has other fields than the documented ones.
func judgeAWS(first, host, region, id, secret, session string) string {
	var sent map[string]string
	if err := json.Unmarshal([]byte(first), &sent); err != nil {
		return err.Error()
	}
	day := sent["x-amz-date"][:min(8, len(sent["x-amz-date"]))]
	want := map[string]string{
		"version": "2020_10_22", "host": host, "action": "kafka-cluster:Connect", "user-agent": "dinnerbell", "x-amz-algorithm": "AWS4-HMAC-SHA256",
		"x-amz-credential": id + "/" + day + "/" + region + "/kafka-cluster/aws4_request", "x-amz-signedheaders": "host", "x-amz-expires": "300",
		"x-amz-date": sent["x-amz-date"], "x-amz-signature": signAWS(sent, secret),
	}
	if session != "" {
		want["x-amz-security-token"] = session
	}
	at, err := time.Parse("20060102T150405Z", sent["x-amz-date"])
	if age := time.Since(at); err != nil || age > time.Minute || age < -time.Minute || !maps.Equal(sent, want) {
		return fmt.Sprintf("Access denied: sent %v, want %v, %v", sent, want, err)
	}
	return ""
}

// The broker checks the signature of each login; keys that rotate are used when the session
// ends; the region is the environment's for brokers that are not named as Amazon does.
func TestAWSLogin(t *testing.T) {
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "")
	b, file := startLoginBroker(t, "AWS_MSK_IAM"), filepath.Join(t.TempDir(), "credentials")
	use := func(id, secret, session string) {
		text := fmt.Sprintf(`{"Version":1,"AccessKeyId":%q,"SecretAccessKey":%q,"SessionToken":%q}`, id, secret, session)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b.acceptOnly(func(first string) (string, string) {
			if strings.Contains(first, secret) {
				t.Error("the secret key is sent")
			}
			return `{"version":"2020_10_22","request-id":"x"}`, judgeAWS(first, "127.0.0.1", "us-east-1", id, secret, session)
		})
	}
	use("AKIAFIRST", "first/key+x", "IQoJ/first+=")
	keys := "mechanism: aws_msk_iam, aws: {credentials_command: [cat, '" + file + "']}"
	if err := newLoginClient(t, b, keys).Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot determine the region") {
		t.Errorf("without a region: %v", err)
	}
	t.Setenv("AWS_REGION", "us-east-1")
	client := newLoginClient(t, b, keys)
	if err := client.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	use("AKIASECOND", "second/key", "")
	b.renews(t, client)
	static := "mechanism: AWS_MSK_IAM, aws: {access_key_id: AKIASECOND, secret_access_key: "
	if err := newLoginClient(t, b, static+"second/key}").Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if err := newLoginClient(t, b, static+"another/key}").Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "Access denied") {
		t.Errorf("signed with another key: %v", err)
	}
}

// Brokers that are named as Amazon does have their region in the name.
func TestAWSRegion(t *testing.T) {
	t.Parallel()
	m := saslMechanism(loadKeys(t, "mechanism: AWS_MSK_IAM, aws: {access_key_id: AKIAX, secret_access_key: some-key, session_token: some-session}"))
	for host, region := range map[string]string{
		"b-1.demo.abc.c2.kafka.eu-central-1.amazonaws.com":     "eu-central-1",
		"boot-x.c3.kafka-serverless.us-west-2.amazonaws.com":   "us-west-2",
		"b-1.demo.abc.c2.kafka.cn-north-1.amazonaws.com.cn":    "cn-north-1",
		"b-1-public.demo.abc.c2.kafka.eu-west-1.amazonaws.com": "eu-west-1",
	} {
		_, first, err := m.Authenticate(t.Context(), host+":9098")
		if refusal := judgeAWS(string(first), host, region, "AKIAX", "some-key", "some-session"); cmp.Or(err != nil, refusal != "") {
			t.Errorf("%s: %v %s", host, err, refusal)
		}
	}
}
