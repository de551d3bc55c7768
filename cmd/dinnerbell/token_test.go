package main

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// startTokenKafka starts an Apache Kafka with a port for OAUTHBEARER, which takes tokens
// without a signature and ends a session after three seconds, and returns its address; the
// other one needs no login.
func startTokenKafka(t *testing.T) (addr, open string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	const bearer = "listener.name.sasl_plaintext.oauthbearer."
	kafka := envtest.StartKafka(t, filepath.Join(t.TempDir(), "kafka"),
		"listeners=PLAINTEXT://127.0.0.1:@PORT@,SASL_PLAINTEXT://"+addr+",CONTROLLER://127.0.0.1:@CONTROLLER_PORT@", "advertised.listeners=PLAINTEXT://127.0.0.1:@PORT@,SASL_PLAINTEXT://"+addr,
		"listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT", "sasl.enabled.mechanisms=OAUTHBEARER",
		bearer+`sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";`,
		bearer+"connections.max.reauth.ms=3000",
		bearer+"sasl.server.callback.handler.class=org.apache.kafka.common.security.oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler")
	t.Cleanup(func() {
		if err := kafka.Stop(); err != nil {
			t.Error(err)
		}
	})
	return addr, kafka.Addr()
}

// newToken returns a JWT without a signature.
func newToken(end time.Time, n int64) string {
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"none"}`)) + "." + part(fmt.Appendf(nil, `{"sub":"bell","iat":%d,"exp":%d,"n":%d}`, time.Now().Unix()-1, end.Unix(), n)) + "."
}

// tokenFile is a file with the token of a deployment.
type tokenFile struct {
	t    *testing.T
	path string
}

// write replaces the token at once, as the mount of a Kubernetes secret does.
func (f *tokenFile) write(token string) {
	f.t.Helper()
	if err := os.WriteFile(f.path+".new", []byte(token+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(f.path+".new", f.path); err != nil {
		f.t.Fatal(err)
	}
}

// delivers produces a campaign for the 50 clients, and awaits their rows.
func (p *patient) delivers(campaign string) {
	p.t.Helper()
	p.produce(campaign, "diner")
	p.delivered(campaign)
}

func (p *patient) delivered(campaign string) {
	p.t.Helper()
	envtest.Until(p.t, envtest.Patience, func() error {
		if n := p.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = $1`, campaign); n != 50 {
			return fmt.Errorf("%s: %d rows", campaign, n)
		}
		return nil
	})
}

// The daemon logs in with tokens. They end and are renewed while it delivers. The doctor, the
// commands and the log name a token that is wrong or has expired, and its key.
func TestTokensOnKafka(t *testing.T) {
	t.Parallel()
	if !envtest.RealKafka() {
		t.Skip("it needs Apache Kafka: make test-kafka")
	}
	p := newPatient(t, "")
	addr, open := startTokenKafka(t)
	p.kafka = envtest.KafkaAt(t, open)
	p.set("kafka.brokers", []string{addr})
	p.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || n, 'diner' FROM generate_series(1, 50) n`)
	file := &tokenFile{t, filepath.Join(t.TempDir(), "token")}
	p.doctorNamesTokens(file)
	p.worksWithTokenFile(file)
	p.worksWithOIDC()
	p.must("audit")
}

// doctorNamesTokens breaks the login in each way, and leaves a good token of an hour.
func (p *patient) doctorNamesTokens(file *tokenFile) {
	p.t.Helper()
	fromFile := map[string]any{"mechanism": "OAUTHBEARER", "token": "${file:" + file.path + "}"}
	p.set("kafka.sasl", fromFile)
	expired := newToken(time.Now().Add(-time.Hour), 0)
	file.write(expired)
	p.look(ill{"kafka.connection", "FAIL", "expired token", "renew the token of kafka.sasl.token, which has expired at"})
	var stderr syncBuffer
	if code, _ := p.run(p.t.Context(), &stderr, "setup"); code != exitFailed || !strings.Contains(stderr.String(), `refuses the token of kafka.sasl.token: "invalid_token"; renew the token of kafka.sasl.token, which has expired at`) || strings.Contains(stderr.String(), "eyJ") {
		p.t.Errorf("setup with an expired token: exit %d: %s", code, stderr.String())
	}
	file.write("no.such.token")
	p.look(ill{"kafka.connection", "FAIL", "refused token", "give with kafka.sasl.token a token that the brokers accept"})
	p.set("kafka.sasl", map[string]any{"mechanism": "PLAIN", "username": "me", "password": password})
	p.look(ill{"kafka.connection", "FAIL", "wrong SASL mechanism", "set kafka.sasl.mechanism to one that the broker offers: OAUTHBEARER"})
	p.set("kafka.sasl", map[string]any{"mechanism": "OAUTHBEARER", "token_command": []string{"false"}})
	p.look(ill{"kafka.connection", "FAIL", "no token: ", "mend kafka.sasl.token_command"})
	p.set("kafka.sasl", fromFile)
	file.write(newToken(time.Now().Add(time.Hour), 0))
	p.must("setup")
	p.look(ill{"kafka.connection", "ok", "not encrypted, OAUTHBEARER as bell", "-"})
}

// worksWithTokenFile runs the daemon through the end of a token, and through a time in which
// nobody has renewed the next one. Until the daemon is ready, which other tests may hold up,
// it has a token of an hour.
func (p *patient) worksWithTokenFile(file *tokenFile) {
	p.t.Helper()
	stop, ended, log := p.daemon()
	envtest.Until(p.t, envtest.Patience, p.ready)
	end := time.Now().Add(15 * time.Second)
	file.write(newToken(end, 1))
	p.delivers("with the first token")
	second := end.Add(8 * time.Second)
	file.write(newToken(second, 2))
	envtest.Until(p.t, envtest.Patience, func() error { return hasPassed(end) })
	p.delivers("with the second token")
	envtest.Until(p.t, envtest.Patience, func() error { return hasPassed(second) })
	p.produce("without a token", "diner")
	envtest.Until(p.t, envtest.Patience, func() error {
		if want := "renew the token of kafka.sasl.token, which has expired at"; !strings.Contains(log.String(), want) {
			return fmt.Errorf("the log does not say %q", want)
		}
		return nil
	})
	file.write(newToken(time.Now().Add(time.Hour), 3))
	p.delivered("without a token")
	p.ends(stop, ended, log)
}

// worksWithOIDC runs the daemon with tokens of some seconds that an identity provider gives.
func (p *patient) worksWithOIDC() {
	p.t.Helper()
	const life = 8 * time.Second
	var given atomic.Int64
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if id, secret, ok := r.BasicAuth(); !ok || id != "bell" || secret != password {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = fmt.Fprint(w, `{"error":"invalid_client"}`)
			return
		}
		_, _ = fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":%d}`, newToken(time.Now().Add(life), given.Add(1)), int(life.Seconds()))
	}))
	p.t.Cleanup(provider.Close)
	oidc := map[string]any{"token_url": provider.URL, "client_id": "bell", "client_secret": "not-" + password}
	p.set("kafka.sasl", map[string]any{"mechanism": "OAUTHBEARER", "oidc": oidc})
	p.look(ill{"kafka.connection", "FAIL", `answers 401, "invalid_client"`, "mend kafka.sasl.oidc"})
	oidc["client_secret"] = password
	p.set("kafka.sasl", map[string]any{"mechanism": "OAUTHBEARER", "oidc": oidc})
	stop, ended, log := p.daemon()
	envtest.Until(p.t, envtest.Patience, p.ready)
	for round := range 2 {
		first := given.Load()
		envtest.Until(p.t, envtest.Patience, func() error {
			if given.Load() <= first {
				return fmt.Errorf("round %d: no token after the %d", round, first)
			}
			return nil
		})
		p.delivers(fmt.Sprint("by OIDC ", round))
	}
	p.ends(stop, ended, log)
	if text := log.String(); strings.Contains(text, "kafka.sasl") {
		p.t.Errorf("renewals are in the log: %s", text)
	}
}

// ends stops the daemon, and checks that its log shows no secret.
func (p *patient) ends(stop func(), ended <-chan int, log *syncBuffer) {
	p.t.Helper()
	stop()
	if code := <-ended; code != 0 {
		p.t.Errorf("the daemon ended with %d", code)
	}
	if text := log.String(); strings.Contains(text, "eyJ") || strings.Contains(text, password) {
		p.t.Errorf("the log shows a token or the client secret: %s", text)
	}
}

func hasPassed(at time.Time) error {
	if left := time.Until(at); left > 0 {
		return fmt.Errorf("%s are left", left)
	}
	return nil
}
