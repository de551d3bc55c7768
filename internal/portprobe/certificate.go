package portprobe

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// Names are the words for a connection's parts in what ExplainCertificate returns.
type Names struct {
	Server string // "the server", "the brokers"
	CA     string // the setting that names the authority's file
	Host   string // the setting that names the host
	Verify string // another setting that mends a wrong name; "": none
}

// ExplainCertificate tells apart why a server's certificate was refused: kind in a few
// words, and what mends it. ok is false for every other error.
func ExplainCertificate(err error, now time.Time, n Names) (kind, fix string, ok bool) {
	if unknown, is := errors.AsType[x509.UnknownAuthorityError](err); is {
		fix = "set " + n.CA + " to the file of the authority that signed the certificate of " + n.Server
		if unknown.Cert != nil {
			fix += " (" + unknown.Cert.Issuer.String() + ")"
		}
		return "wrong CA", fix, true
	}
	if invalid, is := errors.AsType[x509.CertificateInvalidError](err); is && invalid.Reason == x509.Expired {
		kind, fix = "expired certificate", "renew the certificate of "+n.Server+", which ended at "+invalid.Cert.NotAfter.UTC().Format(time.RFC3339)
		if now.Before(invalid.Cert.NotBefore) {
			kind, fix = "certificate from the future", "the certificate of "+n.Server+" begins at "+invalid.Cert.NotBefore.UTC().Format(time.RFC3339)
		}
		return kind, fix + "; or set this machine's clock, which shows " + now.UTC().Format(time.RFC3339) + ", if that is wrong", true
	}
	if wrong, is := errors.AsType[x509.HostnameError](err); is {
		fix = "name " + n.Server + " in " + n.Host + " as the certificate does (" + certificateNames(wrong.Certificate) + ")"
		if n.Verify != "" {
			fix += ", set " + n.Verify
		}
		return "wrongly named certificate", fix + ", or give " + n.Server + " a certificate for " + wrong.Host, true
	}
	return "", "", false
}

// remoteAlert returns the text of the alert with which the other side has ended a TLS
// connection; "" for every other error. Package tls has no exported type of it.
func remoteAlert(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return strings.TrimPrefix(op.Err.Error(), "tls: ")
	}
	_, alert, _ := strings.Cut(err.Error(), "remote error: tls: ")
	return alert
}

// ExplainClientCertificate tells apart why a server refused the certificate of a client,
// or a client without one: kind in a few words, and what mends it. keys names the settings
// of certificate and key, trust the server's setting of its authorities. ok is false for
// every other error.
//
// A server sends an alert alone (RFC 8446, section 6.2), and servers differ in which one.
func ExplainClientCertificate(err error, keys, trust string) (kind, fix string, ok bool) {
	alert := remoteAlert(err)
	if !strings.Contains(alert, "certificate") {
		return "", "", false
	}
	fix = "set " + keys + " to a certificate, with its key, that has not ended and that an authority in " + trust + " has signed"
	switch {
	case strings.HasPrefix(alert, "expired certificate"):
		return ExpiredClientCertificate, RenewClientCertificate(keys), true
	case strings.HasPrefix(alert, "certificate required"):
		return "missing client certificate", fix, true
	}
	return "missing or refused client certificate", fix, true
}

// ExpiredClientCertificate says in a few words that a client's certificate has expired.
const ExpiredClientCertificate = "expired client certificate"

// RenewClientCertificate returns what mends an expired certificate of a client. keys names
// the settings of certificate and key.
func RenewClientCertificate(keys string) string { return "renew the certificate of " + keys }

// HasExpired reports whether one of a client's certificates has expired.
func HasExpired(certificates []tls.Certificate, now time.Time) bool {
	return slices.ContainsFunc(certificates, func(c tls.Certificate) bool { return c.Leaf != nil && now.After(c.Leaf.NotAfter) })
}

// certificateNames returns the names that a certificate is for.
func certificateNames(cert *x509.Certificate) string {
	names := cert.DNSNames
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return "it has none: " + fmt.Sprint(cert.Subject)
	}
	return strings.Join(names, ", ")
}
