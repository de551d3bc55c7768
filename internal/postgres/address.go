// Package postgres connects to a Postgres server: it reads an address, hides its
// password, and dials.
//
// The driver is not trusted with texts. It puts an unencoded password's tail into
// the host's name, which the resolver repeats in its error; it takes an unknown key
// for a session setting, which the server repeats. So Parse refuses every address
// that can be read in two ways, no error of this package holds a part of the
// address that may belong to a password, and Redact shows the fields that the
// driver's own parser has found, never the text.
package postgres

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// encodeHint ends the message about a URL that can be read in two ways.
const encodeHint = `write every @ : / ? # and % of a name or password percent-encoded (%40 %3A %2F %3F %23 %25)`

// Parse reads a URL (postgres://…) or a keyword/value string, as libpq and the
// driver do, with their environment variables, service and password files. Use
// the result with Connect or ConnectWalsender. An error names no part of raw but
// files.
func Parse(raw string) (*pgx.ConnConfig, error) {
	isURL := strings.HasPrefix(raw, "postgres://") || strings.HasPrefix(raw, "postgresql://")
	if isURL {
		if err := checkURL(raw); err != nil {
			return nil, err
		}
	} else if err := checkKeywords(raw); err != nil {
		return nil, err
	}
	o, err := pgx.ParseConfig(raw)
	if err != nil {
		return nil, explainParse(err)
	}
	if err := checkParsed(&o.Config, isURL); err != nil {
		return nil, err
	}
	return o, nil
}

// Check gives Parse's error alone.
func Check(raw string) error {
	_, err := Parse(raw)
	return err
}

// Redact returns an address for messages: user, hosts and database as the driver
// has understood them, nothing else. An address that Parse refuses is hidden
// whole.
func Redact(raw string) string {
	o, err := Parse(raw)
	if err != nil {
		return "[redacted]"
	}
	var hosts []string
	for _, f := range append([]*pgconn.FallbackConfig{{Host: o.Host, Port: o.Port}}, o.Fallbacks...) {
		host := f.Host + ":" + strconv.Itoa(int(f.Port))
		if strings.Contains(f.Host, ":") {
			host = "[" + f.Host + "]:" + strconv.Itoa(int(f.Port))
		}
		if !slices.Contains(hosts, host) { // one of sslmode=prefer comes twice
			hosts = append(hosts, host)
		}
	}
	return fmt.Sprintf("postgres://%s@%s/%s", url.PathEscape(o.User), strings.Join(hosts, ","), url.PathEscape(o.Database))
}

// Passwords returns the passwords of an address, each as sent and as written. It
// returns nil for an address that Parse refuses, because no connection uses it.
func Passwords(raw string) []string {
	o, err := Parse(raw)
	if err != nil || o.Password == "" {
		return nil
	}
	_, userinfo, _ := strings.Cut(raw, "://")
	userinfo, _, found := strings.Cut(userinfo, "@")
	if _, written, ok := strings.Cut(userinfo, ":"); found && ok && written != "" && written != o.Password {
		return []string{o.Password, written}
	}
	return []string{o.Password}
}

// PasswordPlace is where the password of a connection stands.
type PasswordPlace uint8

// The places, in the order of their precedence.
const (
	PasswordInAddress     PasswordPlace = iota
	PasswordInEnvironment               // PGPASSWORD
	PasswordInFile                      // PGPASSFILE, ~/.pgpass, or the service file
)

// passwordKeyword matches the password of a keyword/value string.
var passwordKeyword = regexp.MustCompile(`(?:^|\s)password\s*=`)

// FindPassword returns where the password stands of an address for which [Passwords]
// finds one.
func FindPassword(raw string) PasswordPlace {
	u, err := url.Parse(raw)
	if err == nil && u.Scheme != "" {
		if _, set := u.User.Password(); set || u.Query().Has("password") {
			return PasswordInAddress
		}
	} else if passwordKeyword.MatchString(raw) {
		return PasswordInAddress
	}
	if os.Getenv("PGPASSWORD") != "" {
		return PasswordInEnvironment
	}
	return PasswordInFile
}

// AddPassword returns the address with a password, which takes precedence over one that
// the address or the environment has.
func AddPassword(raw, password string) string {
	if !strings.HasPrefix(raw, "postgres://") && !strings.HasPrefix(raw, "postgresql://") {
		return raw + " password='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(password) + "'"
	}
	separator := "?"
	if strings.Contains(raw, "?") {
		separator = "&"
	}
	return raw + separator + "password=" + strings.ReplaceAll(url.QueryEscape(password), "+", "%20") // the driver reads no + as a blank
}

// checkURL refuses a URL in which a password that is not encoded would be taken
// for something else. The driver, like libpq, ends the password at the first @
// or /, and the host at the first / or ?.
func checkURL(raw string) error {
	_, rest, _ := strings.Cut(raw, "://")
	authority, behind := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, behind = rest[:i], rest[i:]
	}
	switch {
	case strings.Contains(behind, "@"):
		return errors.New("a raw @ stands behind a / or ?: " + encodeHint)
	case strings.Count(authority, "@") > 1:
		return errors.New("more than one raw @: " + encodeHint)
	}
	userinfo, _, found := strings.Cut(authority, "@")
	if user, _, _ := strings.Cut(userinfo, ":"); found && strings.ContainsAny(user, "#[]") {
		return errors.New("a raw # or bracket in the user's name: " + encodeHint)
	}
	_, query, _ := strings.Cut(behind, "?")
	for parameter := range strings.SplitSeq(query, "&") {
		if strings.Count(parameter, "=") > 1 {
			return errors.New("a raw = in the value of a parameter: write it as %3D, as in options=-c%20name%3Dvalue")
		}
	}
	if _, err := url.ParseQuery(query); err != nil {
		return errors.New("the part behind the ? is not name=value&name=value: " + encodeHint)
	}
	return nil
}

// checkKeywords refuses what looks like a URL and would be read as keywords.
func checkKeywords(raw string) error {
	keyword, _, _ := strings.Cut(raw, "=")
	switch {
	case strings.HasPrefix(strings.TrimSpace(raw), "jdbc:"):
		return errors.New("a JDBC URL; write postgres://user:password@host:5432/database")
	case strings.ContainsAny(keyword, ":/@"):
		return errors.New("neither postgres://user:password@host:5432/database nor keyword=value pairs")
	}
	return nil
}

// hostName holds for the names and addresses of hosts, letters of any alphabet
// included, and for the folder of a Unix socket.
var hostName = regexp.MustCompile(`^([\pL\pN._:%-]+|/.*)$`)

// checkParsed refuses values that the driver has accepted and that the server or
// the resolver would repeat in an error.
func checkParsed(o *pgconn.Config, isURL bool) error {
	for _, f := range append([]*pgconn.FallbackConfig{{Host: o.Host}}, o.Fallbacks...) {
		if !hostName.MatchString(f.Host) {
			return errors.New("a host with characters that no host's name has: " + encodeHint)
		}
	}
	if isURL && o.Password == "" && strings.Contains(o.User, ":") {
		return errors.New("the : between user and password is percent-encoded; write it as it is")
	}
	for name := range o.RuntimeParams {
		switch {
		case slices.Contains(ofSession, strings.ToLower(name)):
		case slices.Contains(libpqParameters, name):
			return fmt.Errorf("the parameter %s is not supported by dinnerbell's driver; remove it", name)
		default:
			// It may be a part of a password.
			return errors.New("an unknown parameter, which is not shown since it may be a part of the password: " +
				"put a password with blanks or quotes into '…', percent-encode & in a URL, " +
				"and write a session's settings as options=-c%20name%3Dvalue in a URL, else as options='-c name=value'")
		}
	}
	return nil
}

// settings are the names of the settings that a session may change, of Postgres
// 14 to 18: those of pg_settings with a context of user, superuser or backend.
// Those of extensions go into options.
//
//go:embed settings.txt
var settings string

// ofSession are the lower-case names of the settings that an address may give a
// session. The driver has removed the keys that it uses itself.
var ofSession = append(strings.Fields(settings), "options", "replication")

// libpqParameters are libpq's parameters that the driver would take for settings
// of the session (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS).
var libpqParameters = []string{
	"hostaddr", "fallback_application_name", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count",
	"gssencmode", "gsslib", "gssdelegation", "sslcompression", "sslcrl", "sslcrldir", "requirepeer", "ssl_min_protocol_version",
	"ssl_max_protocol_version", "load_balance_hosts", "scram_client_key", "scram_server_key", "sslkeylogfile", "tty", "authtype",
	"oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope", "servicefile", "ssl",
}

// explainParse returns the reason of a parse error if it cannot contain a part of a
// password: an error about the files for TLS, or about services.
func explainParse(err error) error {
	if p, ok := errors.AsType[*pgconn.ParseConfigError](err); ok {
		if cause := errors.Unwrap(p); cause != nil {
			for _, part := range []string{"failed to configure TLS", "failed to read service"} {
				if strings.HasSuffix(p.Error(), part+" ("+cause.Error()+")") {
					return fmt.Errorf("%s: %w", part, explainFile(cause))
				}
			}
		}
	}
	return errors.New("not a Postgres address (postgres://user:password@host:5432/database): " + encodeHint +
		"; in keyword=value pairs, put a value with blanks or quotes into '…'")
}

// explainFile adds causes that the driver leaves out about the files for TLS.
func explainFile(err error) error {
	text := err.Error()
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return err
	case strings.Contains(text, "unable to add CA to cert pool"):
		return errors.New("the file of sslrootcert holds no PEM certificate")
	case strings.Contains(text, "unable to find sslpassword"):
		return errors.New("the key in sslkey is encrypted; add its password as sslpassword")
	case strings.Contains(text, "unable to decrypt key"):
		return errors.New("the password in sslpassword does not decrypt the key in sslkey")
	case strings.Contains(text, "failed to parse private key"):
		return errors.New("the key in sslkey cannot be read; one that is encrypted as PKCS#8 (BEGIN ENCRYPTED PRIVATE KEY) " +
			"is not supported for Postgres: openssl pkey -in KEY -out NEW decrypts it")
	}
	return err
}
