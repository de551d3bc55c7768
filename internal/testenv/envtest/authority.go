package envtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"
)

// Authority signs certificates of servers and clients.
type Authority struct {
	File string // its own certificate, as PEM

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Leaf describes a certificate that an authority signs.
type Leaf struct {
	Name  string        // the common name
	Hosts []string      // addresses and names of a server; none for a client
	Ends  time.Duration // from now; 0: in an hour, negative: it has expired
}

// NewAuthority makes an authority with its certificate in file.
func NewAuthority(t testing.TB, file, name string) *Authority {
	t.Helper()
	key := newKey(t)
	a := &Authority{File: file, key: key}
	a.cert = &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	ReplaceFile(t, file, a.sign(t, a.cert, key))
	return a
}

// Issue signs a certificate and writes it to FILE.pem, its key to FILE.key, and both to
// FILE.both.pem, as Kafka wants its store. It replaces existing files.
func (a *Authority) Issue(t testing.TB, file string, l Leaf) (cert, key string) {
	t.Helper()
	private := newKey(t)
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: l.Name}, NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if l.Ends != 0 {
		template.NotAfter = time.Now().Add(l.Ends)
	}
	for _, host := range l.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	signed := a.sign(t, template, private)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	secret := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	ReplaceFile(t, file+".key", secret)
	ReplaceFile(t, file+".pem", signed)
	ReplaceFile(t, file+".both.pem", append(secret, signed...))
	return file + ".pem", file + ".key"
}

// sign returns a certificate as PEM.
func (a *Authority) sign(t testing.TB, template *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	number, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = number
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
