package httpserve

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/status"
)

const token = "0123456789abcdef-token"

// request asks a handler as a peer does.
func request(t *testing.T, h http.Handler, peer, host, path, authorization string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
	r.RemoteAddr, r.Host = peer, host
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func basic(user, password string) string {
	r := &http.Request{Header: http.Header{}}
	r.SetBasicAuth(user, password)
	return r.Header.Get("Authorization")
}

// With a token set, each way of giving it works, everything else is refused, and strangers
// learn from the probes no more than whether the daemon is ready.
func TestToken(t *testing.T) {
	t.Parallel()
	report := status.Report{Reasons: []string{"source: a-detail"}}
	h := ReadOnly(status.NewHandler(status.Build{}, func() status.Report { return report }, slog.New(slog.DiscardHandler)),
		Access{Token: func() (string, error) { return token, nil }}, slog.New(slog.DiscardHandler))
	for i, tc := range []struct {
		path, authorization string
		code                int
	}{
		{"/api/status", "Bearer " + token, 200},
		{"/api/status", "bearer  " + token, 200},
		{"/api/status", basic("anybody", token), 200},
		{"/api/status", basic("", token), 200},
		{"/metrics", "Bearer " + token, 200},
		{"/readyz", "Bearer " + token, 503},
		{"/api/status", "", 401},
		{"/metrics", "", 401},
		{"/", "", 401},
		{"/live/events", "", 401},
		{"/api/status", "Bearer", 401},
		{"/api/status", "Bearer ", 401},
		{"/api/status", "Bearer " + token[:len(token)-1], 401},
		{"/api/status", "Bearer " + token + "x", 401},
		{"/api/status", "Token " + token, 401},
		{"/api/status", token, 401},
		{"/api/status", basic(token, ""), 401},
		{"/api/status", "Basic !!!", 401},
		{"/healthz", "", 200},
		{"/healthz", "Bearer wrong", 200},
		{"/readyz", "", 503},
		{"/readyz", "Bearer wrong", 503},
		{"/healthz/", "", 401},
		{"//healthz", "", 401},
	} {
		w := request(t, h, fmt.Sprintf("192.0.2.%d:9", i), "any.example", tc.path, tc.authorization)
		if w.Code != tc.code {
			t.Errorf("%s with %q: %d %s, want %d", tc.path, tc.authorization, w.Code, w.Body, tc.code)
		}
		if challenge := w.Header().Get("WWW-Authenticate"); (challenge != "") != (tc.code == 401) {
			t.Errorf("%s with %q: WWW-Authenticate %q", tc.path, tc.authorization, challenge)
		}
		if body := w.Body.String(); strings.Contains(body, "a-detail") && tc.authorization != "Bearer "+token && tc.code != 200 || strings.Contains(body, token) {
			t.Errorf("%s with %q tells %s", tc.path, tc.authorization, body)
		}
	}
}

// A new token counts at once, and one that cannot be read lets nobody in.
func TestTokenIsReadAnew(t *testing.T) {
	t.Parallel()
	now, failure := token, error(nil)
	var log strings.Builder
	h := ReadOnly(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), Access{Token: func() (string, error) { return now, failure }, Loopback: true}, slog.New(slog.NewTextHandler(&log, nil)))
	try := func(authorization string) int {
		return request(t, h, "192.0.2.1:9", "localhost", "/metrics", authorization).Code
	}
	former, later := "Bearer "+token, "Bearer later-"+token
	if try(former) != 200 || try(later) != 401 {
		t.Error("before the rotation")
	}
	now = "later-" + token
	if try(former) != 401 || try(later) != 200 {
		t.Error("after the rotation")
	}
	now, failure = "", errors.New("gone")
	if try(former) != 503 || try(later) != 503 || try("") != 503 {
		t.Error("without a token that can be read somebody is let in")
	}
	if !strings.Contains(log.String(), "gone") || strings.Contains(log.String(), token) {
		t.Errorf("log: %s", log.String())
	}
	if code := request(t, h, "192.0.2.1:9", "localhost", "/healthz", "").Code; code != 200 {
		t.Errorf("healthz: %d", code)
	}
}

// An address with too many wrong tokens is not compared for a while; others are.
func TestWrongTokensAreBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	var log strings.Builder
	h := &readOnlyHandler{next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), access: Access{Token: func() (string, error) { return token, nil }},
		log: slog.New(slog.NewTextHandler(&log, nil)), attempts: newAttemptLimiter(func() time.Time { return now })}
	try := func(peer, given string) int { return request(t, h, peer, "x", "/metrics", given).Code }
	for i := range freeAttempts {
		if code := try("[2001:db8::1]:7", basic("u", fmt.Sprint(i))); code != 401 {
			t.Fatalf("attempt %d: %d", i, code)
		}
	}
	w := request(t, h, "[2001:db8::2]:7", "x", "/metrics", "Bearer "+token) // of the same network
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" {
		t.Errorf("the right one after too many: %d %v", w.Code, w.Header())
	}
	if try("[2001:db8::1]:7", "") != 401 || try("[2001:db8:0:1::1]:7", "Bearer "+token) != 200 || try("192.0.2.1:7", "Bearer "+token) != 200 {
		t.Error("others are kept out")
	}
	if n := strings.Count(log.String(), "too many wrong tokens"); n != 1 || !strings.Contains(log.String(), "2001:db8::/64") {
		t.Errorf("log: %s", log.String())
	}
	now = now.Add(attemptPace)
	if code := try("[2001:db8::1]:7", "Bearer "+token); code != 200 {
		t.Errorf("after a while: %d", code)
	}
	for i := range 3 * maxAddresses {
		h.attempts.noteFailure(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32))
	}
	if n := len(h.attempts.paid); n > maxAddresses {
		t.Errorf("%d addresses are remembered", n)
	}
}

// Which Host is answered depends on who can own the name.
func TestHosts(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		host             string
		loopback, public bool // whether it is answered on such a listener without a token
	}{
		{"", true, true},
		{"127.0.0.1:8420", true, true},
		{"10.0.0.7", true, true},
		{"[fe80::1%25eth0]:8420", true, true},
		{"localhost.:8420", true, true},
		{"a.localhost", true, true},
		{"Bell.Example:443", true, true}, // in http.hosts
		{"dinnerbell:8420", false, true},
		{"dinnerbell.default.svc:8420", false, true},
		{"dinnerbell.default.svc.cluster.local", false, true},
		{"box.home.arpa", false, true},
		{"evil.example:8420", false, false},
		{"x.bell.example", false, false},
		{"svc.evil.example", false, false},
		{"127.0.0.1.evil.example", false, false},
		{"evillocal.example:80:80", false, false},
	} {
		for loopback, want := range map[bool]bool{true: tc.loopback, false: tc.public} {
			h := ReadOnly(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), Access{Token: noToken, Hosts: []string{"bell.example"}, Loopback: loopback}, slog.New(slog.DiscardHandler))
			w := request(t, h, "192.0.2.1:9", tc.host, "/metrics", "")
			if answered := w.Code == http.StatusOK; answered != want || !want && !strings.Contains(w.Body.String(), "http.hosts") {
				t.Errorf("Host %q, loopback %t: %d %s", tc.host, loopback, w.Code, w.Body)
			}
		}
	}
}
