package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/youmark/pkcs8"
)

// TLS of the connections to the brokers. The files are PEM and are read again
// for every connection, so that a rotated certificate needs no restart.
type TLS struct {
	Enabled     bool   `yaml:"enabled"`      // default false
	CA          string `yaml:"ca"`           // default: the system's
	Cert        string `yaml:"cert"`         // client certificate, together with Key
	Key         string `yaml:"key"`          // its private key
	KeyPassword Secret `yaml:"key_password"` // of an encrypted key; no default
	ServerName  string `yaml:"server_name"`  // default: the broker's host
}

// Config reads the files. Without a server name the dialer checks the certificate
// against the broker's host. Errors begin with the key.
func (t TLS) Config() (*tls.Config, error) {
	tc := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if t.CA != "" {
		var err error
		if tc.RootCAs, err = readAuthorities("kafka.tls.ca", t.CA); err != nil {
			return nil, err
		}
	}
	if t.Cert == "" {
		return tc, nil
	}
	cert, err := readBounded(t.Cert)
	if err != nil {
		return nil, fmt.Errorf("kafka.tls.cert: %w", err)
	}
	key, err := t.readKey()
	if err != nil {
		return nil, fmt.Errorf("kafka.tls.key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("kafka.tls.cert and kafka.tls.key: %w", err)
	}
	tc.Certificates = []tls.Certificate{pair}
	return tc, nil
}

// readAuthorities reads the certificates in the PEM file that a key names.
func readAuthorities(key, path string) (*x509.CertPool, error) {
	text, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: %s holds no PEM certificate", key, path)
	}
	return pool, nil
}

// readKey returns the private key as PEM. It decrypts an encrypted key: as PKCS#8,
// the form of today's openssl, or in the older one with a DEK-Info header.
func (t TLS) readKey() ([]byte, error) {
	text, err := readBounded(t.Key)
	if err != nil {
		return nil, err
	}
	block := privateKey(text)
	switch {
	case block == nil:
		return nil, fmt.Errorf("%s holds no PEM private key", t.Key)
	case block.Type != encryptedPKCS8 && !x509.IsEncryptedPEMBlock(block): //nolint:staticcheck // weak, and still in use
		return text, nil
	case !t.KeyPassword.IsSet():
		return nil, fmt.Errorf("%s is encrypted; set kafka.tls.key_password", t.Key)
	}
	password, err := t.KeyPassword.Reveal()
	if err != nil {
		return nil, err
	}
	if block.Type == encryptedPKCS8 {
		key, err := pkcs8.ParsePKCS8PrivateKey(block.Bytes, []byte(password))
		if err != nil {
			return nil, fmt.Errorf("decrypt %s with kafka.tls.key_password: %w", t.Key, err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", t.Key, err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
	}
	der, err := x509.DecryptPEMBlock(block, []byte(password)) //nolint:staticcheck // see above
	if err != nil {
		return nil, fmt.Errorf("decrypt %s: kafka.tls.key_password is wrong: %w", t.Key, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: der}), nil
}

const encryptedPKCS8 = "ENCRYPTED PRIVATE KEY"

// privateKey returns the key in a PEM file, in which parameters of a curve or the
// certificate may stand before it; nil without a key.
func privateKey(text []byte) *pem.Block {
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		switch {
		case block == nil:
			return nil
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			return block
		}
	}
}

// checkTLS reads the files too: a missing file is a mistake in the configuration,
// which no retry mends.
func (c *Config) checkTLS() []error {
	t := c.Kafka.TLS
	switch {
	case !t.Enabled && (t.CA != "" || t.Cert != "" || t.Key != "" || t.KeyPassword.IsSet() || t.ServerName != ""):
		return []error{errors.New("kafka.tls: has settings but is off; set kafka.tls.enabled: true or remove them")}
	case (t.Cert == "") != (t.Key == ""):
		return []error{errors.New("kafka.tls: cert and key go together")}
	case t.KeyPassword.IsSet() && t.Key == "":
		return []error{errors.New("kafka.tls.key_password: there is no kafka.tls.key")}
	}
	if _, err := t.Config(); err != nil {
		return []error{err}
	}
	return nil
}
