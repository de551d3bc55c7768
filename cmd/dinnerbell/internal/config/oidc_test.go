package config

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// tokenProvider is an identity provider with TLS for a client id and a secret that need
// encoding.
type tokenProvider struct {
	*httptest.Server

	ca              string // file
	asked, parallel atomic.Int64
	answer          atomic.Pointer[http.HandlerFunc] // N in what it writes is the number of the request
}

func newTokenProvider(t *testing.T) *tokenProvider {
	t.Helper()
	e := &tokenProvider{}
	e.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if e.parallel.Add(1) > 1 {
			t.Error("two requests at a time")
		}
		defer e.parallel.Add(-1)
		e.asked.Add(1)
		want := "Basic " + base64.StdEncoding.EncodeToString([]byte("cli%3Aent:s%2B3cret"))
		if got := r.Header.Get("Authorization"); r.Method != http.MethodPost || got != want || r.FormValue("grant_type") != "client_credentials" || r.FormValue("scope") != "kafka read" {
			t.Errorf("asked %s %s with %q, %v", r.Method, r.URL, got, r.Form)
		}
		(*e.answer.Load())(w, r)
	}))
	e.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // a client refuses the certificate
	e.StartTLS()
	t.Cleanup(e.Close)
	e.ca = write(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.Certificate().Raw})))
	return e
}

// say has the provider answer with a status and a text.
func (e *tokenProvider) say(status int, text string) {
	answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
		_, _ = fmt.Fprint(w, strings.ReplaceAll(text, "N", strconv.FormatInt(e.asked.Load(), 10)))
	})
	e.answer.Store(&answer)
}

// settings are the keys of kafka.sasl for the provider.
func (e *tokenProvider) settings() string {
	return "mechanism: OAUTHBEARER, oidc: {token_url: '" + e.URL + "/token', client_id: 'cli:ent', client_secret: 's+3cret', scope: 'kafka read', ca: '" + e.ca + "'}"
}

// A token is used again while it lives, and connections that begin together cost one
// request; one that a broker has refused is not used again.
func TestOIDCToken(t *testing.T) {
	t.Parallel()
	e := newTokenProvider(t)
	cfg := loadSASL(t, e.settings())
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	sasl := cfg.Kafka.SASL
	read := func(want string) {
		t.Helper()
		if token, err := sasl.RevealToken(); err != nil || token != want {
			t.Errorf("token %q, %v; want %s", token, err, want)
		}
	}
	e.say(http.StatusOK, `{"access_token": "token-N", "token_type": "bearer", "expires_in": 3600}`)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { read("token-1") })
	}
	all.Wait()
	if left := time.Until(sasl.tokens.until); left > 3540*time.Second || left < 3000*time.Second {
		t.Errorf("the token is used for %s", left)
	}
	sasl.ForgetToken("another")
	read("token-1")
	sasl.ForgetToken("token-1")
	envtest.Until(t, envtest.Patience, func() error {
		if token, err := sasl.RevealToken(); err != nil || token != "token-2" {
			return fmt.Errorf("after a refusal: %q, %w", token, err)
		}
		return nil
	})
	if text := cfg.Hide("token-2 s+3cret cli:ent"); text != "[redacted] [redacted] cli:ent" {
		t.Errorf("shown: %s", text)
	}
}

// How long a token is used follows from its life.
func TestOIDCTokenLife(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"300": 240 * time.Second, `"300"`: 240 * time.Second, "10": 8 * time.Second, "86400": 86340 * time.Second,
		"": oidcPause, "null": oidcPause, "0": oidcPause, "-5": oidcPause, `"NaN"`: oidcPause, "1e300": 365*24*time.Hour - time.Minute,
	} {
		e := newTokenProvider(t)
		e.say(http.StatusOK, strings.Replace(`{"access_token": "token", "expires_in": X}`, `, "expires_in": X`, map[bool]string{false: `, "expires_in": ` + text}[text == ""], 1))
		sasl := loadSASL(t, e.settings()).Kafka.SASL
		if token, err := sasl.RevealToken(); err != nil || token != "token" || sasl.tokens.until.Sub(sasl.tokens.asked) != want {
			t.Errorf("expires_in %s: %q is used for %s, %v", text, token, sasl.tokens.until.Sub(sasl.tokens.asked), err)
		}
	}
}

// Whatever the provider does, the error names the key that mends it, and shows no secret. A
// failure is shared and not repeated at once; after it the provider is asked again.
func TestOIDCFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status     int
		text, want string
	}{
		{401, `{"error": "invalid_client", "error_description": "who are you"}`, `/token answers 401, "invalid_client", "who are you"; correct kafka.sasl.oidc.client_id and kafka.sasl.oidc.client_secret`},
		{400, `{"error": "invalid_scope"}`, `answers 400, "invalid_scope", ""; correct kafka.sasl.oidc.scope`},
		{400, `{"error": "unauthorized_client"}`, "allow this client the grant client_credentials"},
		{503, "<html>", "answers 503; the daemon tries again"},
		{404, "", "answers 404; correct kafka.sasl.oidc.token_url"},
		{307, "", "answers 307, a redirect, which is not followed; correct kafka.sasl.oidc.token_url"},
		{200, "<html>hunter2", "answers something that is no JSON object; correct kafka.sasl.oidc.token_url"},
		{200, "{}", "answers without an access_token"},
		{200, `{"access_token": "hunter2", "token_type": "DPoP"}`, `a token of the type "DPoP", not Bearer`},
		{200, `{"access_token": "hunter2 x"}`, "the token is empty, or has a blank"},
		{200, `{"access_token": "hunter2` + strings.Repeat("x", maxTokenAnswer) + `"}`, "answers with more than 262144 bytes"},
	} {
		e := newTokenProvider(t)
		e.say(c.status, c.text)
		sasl := loadSASL(t, e.settings()).Kafka.SASL
		began := time.Now()
		for range 3 {
			if token, err := sasl.RevealToken(); err == nil || !strings.HasPrefix(err.Error(), "kafka.sasl.oidc: ") || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "3cret") {
				t.Errorf("%d %.60s: %q, %v; want %s", c.status, c.text, token, err, c.want)
			}
		}
		if n := e.asked.Load(); n > 1+int64(time.Since(began)/oidcPause) {
			t.Errorf("%d %.60s: asked %d times", c.status, c.text, n)
		}
		if c.status != http.StatusServiceUnavailable {
			continue // the pause takes a second
		}
		e.say(http.StatusOK, `{"access_token": "good"}`)
		envtest.Until(t, envtest.Patience, func() error { _, err := sasl.RevealToken(); return err })
	}
}

// An endpoint that does not answer in time, that is not there or that has another authority's
// certificate is named.
func TestOIDCIsUnreachable(t *testing.T) {
	t.Parallel()
	e := newTokenProvider(t)
	done := make(chan struct{})
	// The handler outlives its client: an end that came while the client closes the connection
	// would be the end of a whole answer.
	slow := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, `{"access_token": "hunter2`)
		_ = http.NewResponseController(w).Flush() // the client may be gone
		<-done
	})
	e.answer.Store(&slow)
	release := sync.OnceFunc(func() { close(done) })
	t.Cleanup(release) // before the server's end, which waits for the handler
	sasl := loadSASL(t, e.settings()).Kafka.SASL
	sasl.tokens.patience = 200 * time.Millisecond
	fails := func(want string) {
		t.Helper()
		sasl.tokens.until = time.Time{}
		if token, err := sasl.RevealToken(); err == nil || !strings.HasPrefix(err.Error(), "kafka.sasl.oidc: "+e.URL+"/token: ") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q, %v; want %s", token, err, want)
		}
	}
	fails("no answer in time; see that this machine reaches it, and correct kafka.sasl.oidc.token_url")
	release()
	sasl.tokens.patience = secretPatience
	sasl.OIDC.CA = ""
	fails("set kafka.sasl.oidc.ca to the file of the authority that signed its certificate")
	e.CloseClientConnections()
	e.Close()
	fails("connection refused; see that this machine reaches it")
}
