package doctor

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/status"
)

// checkHTTP checks that the daemon can listen on its address.
func checkHTTP(ctx context.Context, m *machine) ([]finding, error) {
	addr := m.cfg.HTTP.Listen
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err == nil {
		if err := l.Close(); err != nil {
			return nil, err
		}
		return newFact("%s is free%s", addr, describeReaders(m.cfg)), nil
	}
	object := "http.listen " + addr
	_, port, _ := net.SplitHostPort(addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && m.running.answers && answersHTTP(ctx, m.cfg):
		return newFact("%s, used by the running daemon%s", addr, describeReaders(m.cfg)), nil
	case errors.Is(err, syscall.EADDRINUSE):
		return newFailure(object, "another process listens there", "run would end at once", "set http.listen to another port; who it is: ss -ltnp 'sport = :"+port+"'"), nil
	case errors.Is(err, syscall.EACCES):
		return newFailure(object, "this user may not listen there", "run would end at once", "set http.listen to a port above 1023"), nil
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return newFailure(object, "this machine does not have the address", "run would end at once", "set http.listen to 127.0.0.1:"+port+" or to an address of this machine"), nil
	}
	return newFailure(object, err.Error(), "run would end at once", "correct http.listen"), nil
}

// describeReaders names those who can read a listener that other machines may reach.
func describeReaders(cfg *config.Config) string {
	host, _, _ := net.SplitHostPort(cfg.HTTP.Listen) // Validate has tried it
	switch {
	case cfg.HTTP.Token.IsSet():
		return ", for those with the token"
	case config.IsLoopbackHost(host):
		return ""
	}
	return ", for everybody who reaches it (http.insecure)"
}

// answersHTTP reports whether a dinnerbell answers at http.listen, asked as the
// configuration says: with its certificate and its token. One that was started before TLS
// was set up answers without both.
func answersHTTP(ctx context.Context, cfg *config.Config) bool {
	plain := &http.Transport{DisableKeepAlives: true}
	token, err := cfg.HTTPToken()
	if err != nil {
		return false
	}
	if !cfg.HTTP.TLS.IsSet() {
		return answersAt(ctx, "http://"+cfg.HTTP.Listen, token, plain)
	}
	pair, err := config.NewCertificateReader(cfg.HTTP.TLS).Read()
	if err != nil {
		return false
	}
	return answersAt(ctx, "https://"+cfg.HTTP.Listen, token, &http.Transport{DisableKeepAlives: true, TLSClientConfig: trustOnly(pair)}) ||
		answersAt(ctx, "http://"+cfg.HTTP.Listen, "", plain)
}

// answersAt reports whether a dinnerbell answers at a URL. An empty token is not sent.
func answersAt(ctx context.Context, url, token string, transport *http.Transport) bool {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/api/status", http.NoBody)
	if err != nil {
		return false
	}
	req.Host = "localhost" // a listener without a token answers to no name of somebody's own
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	var r status.Report
	return err == nil && json.Unmarshal(body, &r) == nil && r.Version != ""
}

// trustOnly trusts one certificate, whatever names it has: http.listen may be an address.
func trustOnly(pair *tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection compares the certificate itself
		VerifyConnection: func(shown tls.ConnectionState) error {
			if len(shown.PeerCertificates) == 0 || !bytes.Equal(shown.PeerCertificates[0].Raw, pair.Certificate[0]) {
				return errors.New("another certificate")
			}
			return nil
		},
	}
}

// certificateWarning is how long before its end a certificate is warned of.
const certificateWarning = 14 * 24 * time.Hour

// checkHTTPCertificate shows until when the certificate of the listener holds.
func checkHTTPCertificate(_ context.Context, m *machine) ([]finding, error) {
	if !m.cfg.HTTP.TLS.IsSet() {
		return newFact("none: the listener speaks plain HTTP"), nil
	}
	pair, err := config.NewCertificateReader(m.cfg.HTTP.TLS).Read()
	if err != nil {
		return nil, err
	}
	return judgeCertificate(pair.Leaf, m.cfg.HTTP.TLS.Cert, time.Now()), nil
}

func judgeCertificate(leaf *x509.Certificate, file string, now time.Time) []finding {
	object, end := "http.tls.cert "+file, leaf.NotAfter.UTC().Format(time.RFC3339)
	const fix = "put a new certificate and its key into the files; the daemon reads them at the next connection"
	switch {
	case now.After(leaf.NotAfter):
		return newFailure(object, "it ended at "+end, "browsers and Prometheus refuse to connect", fix)
	case now.Before(leaf.NotBefore):
		return newFailure(object, "it begins at "+leaf.NotBefore.UTC().Format(time.RFC3339), "browsers and Prometheus refuse to connect", fix+", or mend the clock")
	case leaf.NotAfter.Sub(now) < certificateWarning:
		return newWarning(object, "it ends at "+end, "browsers and Prometheus refuse to connect from then on", fix)
	}
	return newFact("until %s", end)
}
