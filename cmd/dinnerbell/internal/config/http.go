package config

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
)

// HTTP is the read-only listener.
type HTTP struct {
	Listen   string   `yaml:"listen"` // host:port; default 127.0.0.1:8420
	TLS      HTTPTLS  `yaml:"tls"`
	Token    Secret   `yaml:"token"`    // what a reader must send; ask HTTPToken
	Hosts    []string `yaml:"hosts"`    // further names that a Host may have; default none
	Insecure bool     `yaml:"insecure"` // default false; true: listens off loopback without TLS or token
}

// HTTPTLS is the certificate of the listener. The files are PEM.
type HTTPTLS struct {
	Cert string `yaml:"cert"` // with the intermediate certificates behind it; together with Key
	Key  string `yaml:"key"`  // its private key, not encrypted
}

// IsSet reports whether the listener speaks TLS.
func (t HTTPTLS) IsSet() bool { return t.Cert != "" }

const (
	// minToken is the shortest token, in bytes: one that cannot be guessed at the
	// pace that the listener allows.
	minToken = 16
	// maxToken bounds a token: it has to fit into a header.
	maxToken = 1024
)

// HTTPToken returns the token that readers of the listener send, looked up anew; "" if
// everybody may read.
func (c *Config) HTTPToken() (string, error) {
	if !c.HTTP.Token.IsSet() {
		return "", nil
	}
	token, err := c.HTTP.Token.Reveal()
	if err != nil {
		return "", err
	}
	unprintable := func(r rune) bool { return r <= ' ' || r > '~' }
	switch {
	case len(token) < minToken || len(token) > maxToken:
		return "", fmt.Errorf("http.token: not %d to %d characters long; make one with: openssl rand -hex 32", minToken, maxToken)
	case strings.ContainsFunc(token, unprintable):
		return "", errors.New("http.token: has a blank, a control character or a letter outside of ASCII, which no header carries; make one with: openssl rand -hex 32")
	}
	return token, nil
}

// IsLoopbackHost reports whether a host, as in http.listen, is reached from this machine
// alone: an address of loopback, or localhost. The empty host is every address.
func IsLoopbackHost(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost")
}

// CheckReach refuses a listener on host which other machines may reach, and which neither
// TLS with a token nor http.insecure covers.
func (h *HTTP) CheckReach(host string) error {
	if IsLoopbackHost(host) || h.Insecure || h.TLS.IsSet() && h.Token.IsSet() {
		return nil
	}
	missing := "http.tls.cert, http.tls.key and http.token"
	switch {
	case h.TLS.IsSet():
		missing = "http.token"
	case h.Token.IsSet():
		missing = "http.tls.cert and http.tls.key"
	}
	return fmt.Errorf("http.listen: other machines can reach %s, and whoever reaches it reads campaigns, status and metrics; "+
		"either set %s, or set http.insecure: true where a firewall, a network policy or a proxy guards the port (or listen on 127.0.0.1)", h.Listen, missing)
}

// checkHTTP checks the listener. It reads the files too.
func (c *Config) checkHTTP() []error {
	h := &c.HTTP
	if err := checkHostPort(h.Listen); err != nil {
		return []error{fmt.Errorf("http.listen: %w", err)}
	}
	var out []error
	host, _, _ := net.SplitHostPort(h.Listen)
	if err := h.CheckReach(host); err != nil {
		out = append(out, err)
	}
	if _, err := c.HTTPToken(); err != nil {
		out = append(out, err)
	}
	if (h.TLS.Cert == "") != (h.TLS.Key == "") {
		out = append(out, errors.New("http.tls: cert and key go together"))
	} else if h.TLS.IsSet() {
		if _, err := NewCertificateReader(h.TLS).Read(); err != nil {
			out = append(out, err)
		}
	}
	for _, name := range h.Hosts {
		if strings.ContainsAny(name, "/:@* ") {
			out = append(out, fmt.Errorf("http.hosts: %q is not the name of a host; write it without scheme, port and wildcard", name))
		}
	}
	return out
}

// CertificateReader reads the certificate of the listener.
type CertificateReader struct {
	files HTTPTLS

	mu        sync.Mutex // guards what follows
	cert, key []byte     // the files' contents that pair was made of
	pair      *tls.Certificate
}

// NewCertificateReader makes a reader of the two files.
func NewCertificateReader(files HTTPTLS) *CertificateReader { return &CertificateReader{files: files} }

// Read reads the files and returns the certificate with its key. If that fails it returns
// the last good one, nil if there is none, beside the error. Errors begin with the key.
func (r *CertificateReader) Read() (*tls.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	cert, err := readBounded(r.files.Cert)
	if err != nil {
		return r.pair, fmt.Errorf("http.tls.cert: %w", err)
	}
	key, err := readBounded(r.files.Key)
	if err != nil {
		return r.pair, fmt.Errorf("http.tls.key: %w", err)
	}
	if r.pair != nil && bytes.Equal(cert, r.cert) && bytes.Equal(key, r.key) {
		return r.pair, nil
	}
	if block := privateKey(key); block != nil && (block.Type == encryptedPKCS8 || x509.IsEncryptedPEMBlock(block)) { //nolint:staticcheck // weak, and still in use
		return r.pair, fmt.Errorf("http.tls.key: %s is encrypted; write it without a password: openssl pkey -in %[1]s -out NEW", r.files.Key)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return r.pair, fmt.Errorf("http.tls.cert %s and http.tls.key %s: %w", r.files.Cert, r.files.Key, err)
	}
	r.cert, r.key, r.pair = cert, key, &pair
	return r.pair, nil
}
