package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A listener of loopback needs nothing, and what covers another one is accepted.
func TestListenersThatAreAccepted(t *testing.T) {
	t.Parallel()
	files := keyPair(t)
	for _, yaml := range []string{
		"{listen: '127.0.0.1:0'}", "{listen: '127.9.9.9:0'}", "{listen: '[::1]:0'}", "{listen: '[::ffff:127.0.0.1]:0'}", "{listen: 'LocalHost:0'}",
		"{listen: '127.0.0.1:0', token: 0123456789abcdef, insecure: true}",
		"{listen: '0.0.0.0:0', insecure: true}", "{listen: ':0', insecure: true, token: 0123456789abcdef}",
		"{listen: '0.0.0.0:0', token: 0123456789abcdef, tls: {cert: " + files.cert + ", key: " + files.plain + "}}",
	} {
		text, env := completed("http: "+yaml, nil)
		cfg, err := Load(write(t, "f.yaml", text), env)
		if err != nil {
			t.Fatal(err)
		}
		if err := cfg.Validate(); err != nil {
			t.Errorf("%s: %v", yaml, err)
		}
	}
}

// A new pair of files is used at once; while the files do not fit, the former pair goes on.
func TestCertificateIsReadAnew(t *testing.T) {
	t.Parallel()
	first, second := keyPair(t), keyPair(t)
	dir := t.TempDir()
	files := HTTPTLS{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
	put := func(from, to string) {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := NewCertificateReader(files)
	if pair, err := r.Read(); pair != nil || err == nil || !strings.HasPrefix(err.Error(), "http.tls.cert: open ") {
		t.Fatalf("no files: %v, %v", pair, err)
	}
	put(first.cert, files.Cert)
	put(first.pkcs8, files.Key)
	if pair, err := r.Read(); pair != nil || err == nil || !strings.Contains(err.Error(), "is encrypted; write it without a password: openssl pkey -in "+files.Key) {
		t.Fatalf("an encrypted key: %v, %v", pair, err)
	}
	put(first.plain, files.Key)
	former, err := r.Read()
	if err != nil || former == nil {
		t.Fatal(err)
	}
	if again, err := r.Read(); err != nil || again != former {
		t.Errorf("the same files are parsed again: %v", err)
	}
	put(second.cert, files.Cert)
	if half, err := r.Read(); half != former || err == nil {
		t.Errorf("a certificate without its key: %v", err)
	}
	put(second.plain, files.Key)
	if later, err := r.Read(); err != nil || later == nil || later == former {
		t.Errorf("the new pair is not used: %v", err)
	}
}
