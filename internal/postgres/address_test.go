package postgres

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// mark stands for a secret: no text may hold it.
const mark = "ZQMARK"

func TestParseAccepts(t *testing.T) {
	t.Parallel()
	password := `p@ss:w/rd#1%25 ?&=+${X}"'`
	encoded := url.QueryEscape(password)
	for name, raw := range map[string]string{
		"every byte encoded":  "postgresql://u:" + strings.ReplaceAll(encoded, "+", "%20") + "@db/de?sslmode=disable",
		"a # in the password": "postgres://u:a#b@db/de",
		"a : in the password": "postgres://u:a:b@db/de",
		"a user with @":       "postgres://me%40server:x@db/de",
		"keyword=value":       `host=127.0.0.1 port=1 dbname=de user=u password='` + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(password) + `'`,
		"escaped blank":       `host=db user=u password=a\ b dbname=de`,
		"@ in a keyword":      `host=db user=u password=a@b dbname=de`,
		"Unix socket":         "postgres:///de?host=/run/postgresql&port=5432&user=u&password=" + encoded,
		"IPv6":                "postgres://u:p@[::1]:5432/de",
		"two hosts":           "postgres://u:p@127.0.0.1:1,db-2.internal:5432/de?target_session_attrs=read-write&connect_timeout=3",
		"options":             "postgres://u:p@db/de?options=-c%20work_mem%3D4MB&application_name=x",
		"a setting":           "postgres://u:p@db/de?statement_timeout=1s&TimeZone=UTC",
		"of the driver":       "postgres://u:p@db/de?default_query_exec_mode=exec",
		"no password":         "postgres://u@db/de",
		"names":               "postgres://Dinner-Bell:p@db/Food-Delivery",
		"host alone":          "postgres://db:5432/de",
	} {
		o, err := Parse(raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if shown := Redact(raw); len(o.Password) > 3 && strings.Contains(shown, o.Password) {
			t.Errorf("%s: shown as %s", name, shown)
		}
	}
}

func TestRedactShowsWhatTheDriverHasFound(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"postgres://u:pw@db:5432/de?sslmode=require":                  "postgres://u@db:5432/de",
		"postgres://u:pw@a:1,b:2/de":                                  "postgres://u@a:1,b:2/de",
		"host=db user=u password=pw dbname=de":                        "postgres://u@db:5432/de",
		`host=db password = 'p \'w' user=u dbname=de`:                 "postgres://u@db:5432/de",
		"postgres://u:p#w@[::1]:5432/de":                              "postgres://u@[::1]:5432/de",
		"postgres:///de?host=/run/postgresql&port=7&user=u&password=": "postgres://u@/run/postgresql:7/de",
		"something": "[redacted]",
	} {
		if got := Redact(raw); got != want {
			t.Errorf("Redact(%q) = %q, want %q", raw, got, want)
		}
	}
}

// Each text can be read in two ways, or is no address; no message shows the secret.
func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ raw, want string }{
		{"postgres://u:ab@" + mark + "@127.0.0.1:1/de", "more than one raw @"},
		{"postgres://u:12/" + mark + "@h/de", "raw @ stands behind"},
		{"postgres://u:12?" + mark + "@h/de", "raw @ stands behind"},
		{"postgres://h:5432?password=" + mark + "@x", "raw @ stands behind"},
		{"postgres://h/de?user=me@" + mark, "%40"},
		{"postgres://u:" + mark + "/x", "not a Postgres address"},
		{"postgres://u:p%zz" + mark + "@h/de", "not a Postgres address"},
		{"postgres://u:p#[" + mark + "/x@h/de", "raw @ stands behind"},
		{"postgres://u%3A" + mark + "@h/de", "between user and password"},
		{"postgres://h/de?password=a&" + mark + "=1", "unknown parameter"},
		{"postgres://h/de?passwd=" + mark, "unknown parameter"},
		{"postgres://h/de?password=a;" + mark, "name=value"},
		{"postgres://h/de?options=-c%20a.b=" + mark, "raw = in the value"},
		{"postgres://h/de?password=a=" + mark, "raw = in the value"},
		{"postgres://u:p@h<" + mark + ">/de", "no host's name"},
		{"postgres://h/de?gssencmode=disable", "gssencmode"},
		{"jdbc:postgresql://h/de?user=u&password=" + mark, "JDBC"},
		{"postgres:/u:" + mark + "=@h/de", "neither postgres://"},
		{" postgres://u:" + mark + "=@h/de", "neither postgres://"},
		{"Postgres://u:x@" + mark + "/de?a=b", "neither postgres://"},
		{"host=h user=u password=a " + mark, "'…'"},
		{"host=h user=u password=a " + mark + "=b", "unknown parameter"},
		{"host=h user=u password='a " + mark, "'…'"},
		{"host=h port=" + mark, "not a Postgres address"},
		{"host=h target_session_attrs=" + mark, "not a Postgres address"},
		{"host=h connect_timeout=" + mark, "not a Postgres address"},
		{mark, "not a Postgres address"},
		{"postgres://u:" + mark + "@h/de?sslmode=verify-full&sslrootcert=/nowhere/ca.pem", "/nowhere/ca.pem: no such file"},
		{"postgres://u:" + mark + "@h/de?sslmode=wrong", "sslmode is invalid"},
		{"postgres://u:" + mark + "@h/de?service=nothere&servicefile=/nowhere/s", "/nowhere/s"},
	} {
		err := Check(c.raw)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Check(%q): %v, want %q", c.raw, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), mark) || strings.Contains(Redact(c.raw), mark) {
			t.Errorf("Check(%q) shows the secret: %v, %s", c.raw, err, Redact(c.raw))
		}
	}
}

// An encrypted key is refused, and the error names the reason.
func TestEncryptedClientKeyIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, header := range map[string]string{
		"sslpassword": "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00000000000000000000000000000000\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
		"PKCS#8":      "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
	} {
		key, cert := filepath.Join(dir, name[:3]+"key"), filepath.Join(dir, name[:3]+"cert")
		if err := os.WriteFile(key, []byte(header), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(cert, certificate(t), 0o600); err != nil {
			t.Fatal(err)
		}
		err := Check("postgres://u@h/de?sslmode=require&sslkey=" + key + "&sslcert=" + cert)
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// certificate is one that signs itself, as PEM.
func certificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// named matches texts that give the secret to a known key: then nobody can see that
// a password was intended.
var named = regexp.MustCompile(`[\s&?][\w.]+\s*=[^&\s]*$`)

// For every text before and behind a secret in the place of a password: if the
// driver takes the secret for anything but the password, the address is refused,
// and no text shows it.
func FuzzParse(f *testing.F) {
	for _, around := range [][2]string{{"", ""}, {"a@", ""}, {"12/", "@x"}, {"", "#"}, {"a b=", ""}, {`\`, `'`}, {"?", "="}, {"%", "%zz"}, {"x&", "=1"}, {":0000#0@", ""}, {"[", "]"}, {"' user=", ""}} {
		f.Add(around[0], around[1])
	}
	templates := []string{
		"postgres://u:%s@127.0.0.1:1/de", "postgresql://u:%s@a:1,b:2/de?sslmode=disable", "postgres://127.0.0.1:1/de?password=%s",
		"postgres://u@h/de?password=%s&sslmode=disable", "host=h user=u password=%s dbname=de", "password=%s", "host=h password='%s' port=1",
		"postgres://:%s@", "postgres:%s",
	}
	f.Fuzz(func(t *testing.T, before, behind string) {
		if named.MatchString(before) || strings.Contains(before, "'") && strings.Contains(before, "=") {
			return // the secret was written as the value of another key
		}
		for _, template := range templates {
			raw := fmt.Sprintf(template, before+mark+behind)
			o, err := Parse(raw)
			if err != nil {
				if strings.Contains(err.Error(), mark) {
					t.Errorf("Parse(%q): %v", raw, err)
				}
				continue
			}
			if shown := Redact(raw); strings.Contains(shown, mark) {
				t.Errorf("Redact(%q) = %s", raw, shown)
			}
			if text := everythingBut(t, &o.Config); strings.Contains(text, mark) {
				t.Errorf("Parse(%q) takes the secret for something else: %s", raw, text)
			}
		}
	})
}

// everythingBut gives what of the parsed address a driver's, a server's or a
// resolver's text can repeat.
func everythingBut(t *testing.T, o *pgconn.Config) string {
	t.Helper()
	text, err := json.Marshal([]any{o.User, o.Database, o.Host, o.RuntimeParams})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
