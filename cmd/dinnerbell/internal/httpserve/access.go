package httpserve

import (
	"crypto/sha256"
	"crypto/subtle"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Access says who may read a listener.
type Access struct {
	// Token returns what a request must bring; "": everybody may read. It is called for
	// each request, so that a new token counts at once. An error refuses everybody.
	Token func() (string, error)
	// Hosts are names that a Host may have, beside addresses and localhost.
	Hosts []string
	// Loopback reports that only this machine reaches the listener.
	Loopback bool
}

// ReadOnly is the handler of the TCP listener. It answers GET and HEAD alone, without a
// body, to a Host that no web page can make its own, and to those who bring the token.
// /healthz and /readyz answer everybody; a stranger learns whether the daemon is ready,
// and no reason. Browsers get headers that let no page use an answer.
func ReadOnly(next http.Handler, access Access, log *slog.Logger) http.Handler {
	return &readOnlyHandler{next: next, access: access, log: log, attempts: newAttemptLimiter(time.Now)}
}

type readOnlyHandler struct {
	next     http.Handler
	access   Access
	log      *slog.Logger
	attempts *attemptLimiter
}

// ServeHTTP implements http.Handler.
func (g *readOnlyHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setStrictHeaders(w.Header())
	refused := checkForm(r)
	if refused == nil {
		refused = g.checkReader(r)
		if refused != nil && (r.URL.Path == "/healthz" || r.URL.Path == "/readyz") {
			g.answerStranger(w, r)
			return
		}
	}
	if refused == nil {
		g.next.ServeHTTP(w, r)
		return
	}
	for name, value := range refused.header {
		w.Header().Set(name, value)
	}
	http.Error(w, refused.text, refused.code)
}

func setStrictHeaders(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
}

// refusal is an answer that refuses a request.
type refusal struct {
	code   int
	text   string
	header map[string]string
}

// checkForm refuses a request that no reader sends.
func checkForm(r *http.Request) *refusal {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return &refusal{http.StatusMethodNotAllowed, "read-only: GET and HEAD; commands reach the daemon over the socket in state.dir", map[string]string{"Allow": "GET, HEAD"}}
	case r.ContentLength != 0: // -1: of unknown length
		return &refusal{http.StatusRequestEntityTooLarge, "a request has no body here", map[string]string{"Connection": "close"}}
	}
	return nil
}

// checkReader refuses a request by its Host or for want of the token. A token makes the
// check of the Host needless: a browser sends it to the origin alone that it was typed for.
func (g *readOnlyHandler) checkReader(r *http.Request) *refusal {
	token, err := g.access.Token()
	switch {
	case err != nil:
		g.log.Error("the token of the HTTP listener cannot be read; all requests but those for /healthz and /readyz are refused", "error", err, "to_mend", "mend http.token, or what it refers to")
		return &refusal{http.StatusServiceUnavailable, "the daemon cannot read its token; see its log", nil}
	case token != "":
		return g.checkToken(r, token)
	case !g.access.acceptsHost(r.Host):
		return &refusal{http.StatusMisdirectedRequest, "the Host of the request is not one that this listener answers to; ask by an address or localhost, or add the name to http.hosts", nil}
	}
	return nil
}

// checkToken compares the token of a request, unless its address has sent too many wrong
// ones.
func (g *readOnlyHandler) checkToken(r *http.Request, token string) *refusal {
	challenge := map[string]string{"WWW-Authenticate": `Basic realm="dinnerbell", charset="UTF-8"`}
	given, ok := givenToken(r)
	if !ok {
		return &refusal{http.StatusUnauthorized, "send http.token as Authorization: Bearer TOKEN; in a browser it is the password, with any user", challenge}
	}
	peer := peerOf(r)
	if wait := g.attempts.waitTime(peer); wait > 0 {
		return &refusal{http.StatusTooManyRequests, "too many wrong tokens came from this address; wait", map[string]string{"Retry-After": strconv.Itoa(int(wait/time.Second) + 1)}}
	}
	// The digests have one length, so that the time tells nothing of the token's either.
	want, got := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(given))
	if subtle.ConstantTimeCompare(want[:], got[:]) == 1 {
		return nil
	}
	if g.attempts.noteFailure(peer) {
		g.log.Warn("too many wrong tokens over HTTP; the address may try once every six seconds", "address", peer.String(), "to_mend", "give the client the token that http.token holds")
	}
	return &refusal{http.StatusUnauthorized, "the token is wrong; it is what http.token of the daemon holds", challenge}
}

// givenToken returns the token of a request: a bearer, or the password of HTTP Basic.
func givenToken(r *http.Request) (token string, ok bool) {
	if _, password, ok := r.BasicAuth(); ok {
		return password, true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(token), strings.EqualFold(scheme, "Bearer")
}

// answerStranger answers /healthz and /readyz with no more than the status.
func (g *readOnlyHandler) answerStranger(w http.ResponseWriter, r *http.Request) {
	inner := &statusOnly{header: http.Header{}, code: http.StatusOK}
	g.next.ServeHTTP(inner, r)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(inner.code)
	text := "ok\n"
	if inner.code != http.StatusOK {
		text = "not ready; why: dinnerbell status\n"
	}
	_, _ = w.Write([]byte(text)) // the client has gone: nothing to do about it
}

// statusOnly is a response of which only the status is kept.
type statusOnly struct {
	header http.Header
	code   int
}

// Header implements http.ResponseWriter.
func (s *statusOnly) Header() http.Header { return s.header }

// Write implements http.ResponseWriter.
func (s *statusOnly) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader implements http.ResponseWriter.
func (s *statusOnly) WriteHeader(code int) { s.code = code }

// privateZones are domains in which no stranger can have a name (RFC 6762, RFC 8375,
// ICANN's reservation of .internal; .svc is that of Kubernetes' services).
var privateZones = []string{".local", ".internal", ".svc", ".home.arpa"}

// acceptsHost reports whether a Host header is an address, localhost or a known name.
// Any other name may be a stranger's that resolves to this listener's address (DNS
// rebinding), and makes a page there the same origin to a browser. HTTP/1.0 may leave
// the Host out.
func (a *Access) acceptsHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if _, err := netip.ParseAddr(host); err == nil || host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	if slices.ContainsFunc(a.Hosts, func(name string) bool { return strings.EqualFold(strings.TrimSuffix(name, "."), host) }) {
		return true
	}
	return !a.Loopback && (!strings.Contains(host, ".") || slices.ContainsFunc(privateZones, func(zone string) bool { return strings.HasSuffix(host, zone) }))
}
