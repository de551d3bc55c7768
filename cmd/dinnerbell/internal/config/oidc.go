package config

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// OIDC gets tokens for OAUTHBEARER with the client credentials grant (RFC 6749, section 4.4).
type OIDC struct {
	TokenURL     string `yaml:"token_url"` // https, or http on loopback
	ClientID     Secret `yaml:"client_id"` // rotates with the secret, so it is re-read with it
	ClientSecret Secret `yaml:"client_secret"`
	Scope        string `yaml:"scope"` // scopes with blanks between; default "": the provider's
	CA           string `yaml:"ca"`    // of the provider; default: the system's
}

// keyOIDC is the section that OIDC's errors begin with.
const keyOIDC = "kafka.sasl.oidc"

const (
	// maxTokenAnswer bounds the endpoint's answer, in bytes.
	maxTokenAnswer = 256 << 10
	// tokenMargin is how long before its end a token is no longer used for a new
	// connection: at most this, and at most a fifth of its life.
	tokenMargin = time.Minute
	// oidcPause is the time between two requests at least: every lane retries a login that
	// failed, and providers lock out a client that asks too often.
	oidcPause = time.Second
)

// oidcTokens keeps the last token, or why there is none.
type oidcTokens struct {
	*sharedRuns // its lock guards the other fields

	token string    // "": there is none
	asked time.Time // of the last request
	until time.Time // of the use of its result
}

// readToken returns a token that is not about to expire.
func (o *oidcTokens) readToken(cfg OIDC) (string, error) {
	return o.runShared(func() (string, error) {
		if time.Now().Before(o.until) {
			return o.result()
		}
		o.asked = time.Now() // the token's life begins later
		token, life, err := cfg.requestToken(o.patience)
		o.token, o.until = token, o.asked.Add(max(life-min(tokenMargin, life/5), oidcPause))
		return token, err
	})
}

// discardToken ends the use of a token, unless another one has replaced it.
func (o *oidcTokens) discardToken(token string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.token == token {
		o.until = o.asked.Add(oidcPause)
	}
}

// requestToken asks the endpoint. life is 0 where the answer names none. Errors name the key
// to mend and the endpoint, never a secret. They wrap nothing: the Kafka client would take a
// refused connection for the broker's.
func (c OIDC) requestToken(patience time.Duration) (token string, life time.Duration, err error) {
	id, err := c.ClientID.Reveal()
	if err != nil {
		return "", 0, err
	}
	secret, err := c.ClientSecret.Reveal()
	if err != nil {
		return "", 0, err
	}
	client, err := c.newClient(patience)
	if err != nil {
		return "", 0, err
	}
	defer client.CloseIdleConnections()
	form := url.Values{"grant_type": {"client_credentials"}}
	if c.Scope != "" {
		form.Set("scope", c.Scope)
	}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, c.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return "", 0, errors.New("kafka.sasl.oidc.token_url: it is no address of HTTP")
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(secret)) // RFC 6749, section 2.3.1
	resp, err := client.Do(req)
	if err != nil {
		return "", 0, c.explainNoAnswer(err)
	}
	defer func() { _ = resp.Body.Close() }() // only read
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenAnswer+1))
	if err != nil {
		return "", 0, c.explainNoAnswer(err)
	}
	return c.parseAnswer(resp.StatusCode, body)
}

// newClient makes the client of one request: the next one is minutes away, and may need
// another certificate of the authority.
func (c OIDC) newClient(patience time.Duration) (*http.Client, error) {
	tc := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		var err error
		if tc.RootCAs, err = readAuthorities("kafka.sasl.oidc.ca", c.CA); err != nil {
			return nil, err
		}
	}
	return &http.Client{
		Timeout:   patience,
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: tc},
		// A redirect would carry the secret elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// explainNoAnswer names the endpoint and what to do about a request without an answer.
func (c OIDC) explainNoAnswer(err error) error {
	fix := "see that this machine reaches it, and correct kafka.sasl.oidc.token_url"
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err // without the address, which comes first
	}
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	switch {
	case unknown:
		fix = "set kafka.sasl.oidc.ca to the file of the authority that signed its certificate"
	case ok && timeout.Timeout():
		err = errors.New("no answer in time")
	}
	return fmt.Errorf("%s: %s: %s; %s", keyOIDC, c.TokenURL, err.Error(), fix)
}

// parseAnswer reads an answer (RFC 6749, sections 5.1 and 5.2).
func (c OIDC) parseAnswer(status int, body []byte) (token string, life time.Duration, err error) {
	var answer struct {
		AccessToken string          `json:"access_token"`
		TokenType   string          `json:"token_type"`
		ExpiresIn   json.RawMessage `json:"expires_in"`
		Error       string          `json:"error"`
		Description string          `json:"error_description"`
	}
	const wrongAddress = "correct kafka.sasl.oidc.token_url: the issuer's /.well-known/openid-configuration names its token_endpoint"
	notJSON := json.Unmarshal(body, &answer) != nil
	what, fix := "", wrongAddress
	switch {
	case status != http.StatusOK && !notJSON && answer.Error != "":
		what, fix = fmt.Sprintf("%d, %.60q, %.300q", status, answer.Error, answer.Description), mendRefusal(answer.Error)
	case status >= 300 && status < 400:
		what = fmt.Sprintf("%d, a redirect, which is not followed", status)
	case status >= 500 || status == http.StatusTooManyRequests:
		what, fix = fmt.Sprintf("%d", status), "the daemon tries again; see the provider's log"
	case status != http.StatusOK:
		what = fmt.Sprintf("%d", status)
	case len(body) > maxTokenAnswer:
		what = fmt.Sprintf("with more than %d bytes", maxTokenAnswer)
	case notJSON:
		what = "something that is no JSON object"
	case answer.AccessToken == "":
		what = "without an access_token"
	case answer.TokenType != "" && !strings.EqualFold(answer.TokenType, "Bearer"):
		what, fix = fmt.Sprintf("with a token of the type %.60q, not Bearer", answer.TokenType), "have the provider give bearer tokens to this client"
	}
	if what != "" {
		return "", 0, fmt.Errorf("%s: %s answers %s; %s", keyOIDC, c.TokenURL, what, fix)
	}
	return answer.AccessToken, parseLife(answer.ExpiresIn), nil
}

// mendRefusal returns what to change after an error of RFC 6749, section 5.2.
func mendRefusal(code string) string {
	switch code {
	case "invalid_scope":
		return "correct kafka.sasl.oidc.scope"
	case "unauthorized_client", "unsupported_grant_type":
		return "allow this client the grant client_credentials at the provider"
	}
	return "correct kafka.sasl.oidc.client_id and kafka.sasl.oidc.client_secret"
}

// parseLife reads expires_in, which some providers write in quotes; 0 where it says nothing.
func parseLife(text json.RawMessage) time.Duration {
	const year = 365 * 24 * 3600
	seconds, err := strconv.ParseFloat(strings.Trim(string(text), `"`), 64)
	if err != nil || !(seconds > 0) { // NaN too
		return 0
	}
	return time.Duration(min(seconds, year) * float64(time.Second))
}

// isSet reports whether the section has a value.
func (c OIDC) isSet() bool {
	return c.TokenURL != "" || c.ClientID.IsSet() || c.ClientSecret.IsSet() || c.Scope != "" || c.CA != ""
}

// validate checks the settings, without asking the endpoint.
func (c OIDC) validate() []error {
	out := needSecrets(keyOIDC, map[string]Secret{"oidc.client_id": c.ClientID, "oidc.client_secret": c.ClientSecret})
	u, err := url.Parse(c.TokenURL)
	switch {
	case c.TokenURL == "":
		out = append(out, errors.New("kafka.sasl.oidc.token_url: not set, and kafka.sasl.oidc needs it"))
	case err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http":
		out = append(out, errors.New("kafka.sasl.oidc.token_url: not an address such as https://issuer.example/oauth2/token; user and password belong into kafka.sasl.oidc.client_id and client_secret"))
	case u.Scheme == "http" && !IsLoopbackHost(u.Hostname()):
		out = append(out, errors.New("kafka.sasl.oidc.token_url: http would show the client secret to whoever reads along; use https"))
	}
	if _, err := c.newClient(0); err != nil {
		out = append(out, err)
	}
	return out
}
