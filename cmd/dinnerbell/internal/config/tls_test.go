package config

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/youmark/pkcs8"
)

// pair is a self-signed certificate with its key in the forms that openssl
// writes; the password of the encrypted ones is s3cret.
type pair struct{ cert, plain, pkcs8, legacy string }

func keyPair(t *testing.T) pair {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	encrypted, err := pkcs8.MarshalPrivateKey(key, []byte("s3cret"), nil)
	if err != nil {
		t.Fatal(err)
	}
	der := x509.MarshalPKCS1PrivateKey(key)
	legacy, err := x509.EncryptPEMBlock(rand.Reader, "RSA PRIVATE KEY", der, []byte("s3cret"), x509.PEMCipherAES256) //nolint:staticcheck // what older openssl writes
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	save := func(name string, block *pem.Block) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return pair{
		cert:   save("cert", &pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		plain:  save("plain", &pem.Block{Type: "RSA PRIVATE KEY", Bytes: der}),
		pkcs8:  save("pkcs8", &pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: encrypted}),
		legacy: save("legacy", legacy),
	}
}

func TestEncryptedClientKey(t *testing.T) {
	t.Parallel()
	files := keyPair(t)
	with := func(key, password string) error {
		secret := Secret{key: "kafka.tls.key_password", raw: password, env: Env{}}
		tc, err := TLS{Enabled: true, Cert: files.cert, Key: key, KeyPassword: secret}.Config()
		if err == nil && len(tc.Certificates) != 1 {
			t.Errorf("%s: no certificate", key)
		}
		return err
	}
	for _, key := range []string{files.pkcs8, files.legacy} {
		if err := with(key, "s3cret"); err != nil {
			t.Error(err)
		}
		if err := with(key, ""); err == nil || !strings.Contains(err.Error(), "is encrypted; set kafka.tls.key_password") {
			t.Errorf("no password: %v", err)
		}
		if err := with(key, "wr0ng"); err == nil || !strings.Contains(err.Error(), "kafka.tls.key_password") || strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("a wrong password: %v", err)
		}
		if err := with(key, "${file:/nowhere/pw}"); err == nil || !strings.Contains(err.Error(), "/nowhere/pw") {
			t.Errorf("a password that cannot be read: %v", err)
		}
	}
	if err := with(files.plain, "needless"); err != nil {
		t.Errorf("a key that is not encrypted: %v", err)
	}
	if err := with(files.cert, ""); err == nil || !strings.Contains(err.Error(), "holds no PEM private key") {
		t.Errorf("a certificate for a key: %v", err)
	}
}
