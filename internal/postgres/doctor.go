package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/precondition"
)

// NoConnection is the finding of a server that let nobody in. key is the configuration
// key of the address.
func NoConnection(ctx context.Context, err error, o *pgx.ConnConfig, key string) precondition.Finding {
	f := precondition.Finding{Level: precondition.Fail, Object: key, Effect: "nothing works"}
	if halted, ok := errors.AsType[*halt.Error](err); ok {
		f.Found, f.Fix = halted.What, halted.Hint
		return f
	}
	text := err.Error()
	if connect, ok := errors.AsType[*ConnectError](err); ok {
		text = connect.Error()
	}
	if o == nil { // the address cannot be read
		f.Found = text
		return f
	}
	t := ExplainConnect(ctx, err, o, key)
	f.Found, f.Fix = t.Kind+": "+text, t.Fix
	return f
}

// Describe names the server and the way to it, for the finding of a connection that
// was made: version, address, database and role.
func Describe(conn *pgconn.PgConn, o *pgx.ConnConfig, answer time.Duration) string {
	version, _, _ := strings.Cut(conn.ParameterStatus("server_version"), " ")
	return fmt.Sprintf("Postgres %s at %s, database %s, role %s, answers in %s", version, conn.Conn().RemoteAddr(), o.Database, o.User, answer.Round(10*time.Microsecond))
}

// expiresSoon is how long before its end a certificate is warned of.
const expiresSoon = 14 * 24 * time.Hour

// CheckEncryption warns of a connection over a network that others can read or answer,
// and of a certificate that ends soon. key is the configuration key of the address.
func CheckEncryption(conn *pgconn.PgConn, o *pgx.ConnConfig, key string) []precondition.Finding {
	f := precondition.Finding{Level: precondition.OK, Object: key}
	encrypted, isTLS := conn.Conn().(*tls.Conn)
	if !isTLS {
		if f.Found = "not encrypted, on this machine"; !isLocal(conn.Conn().RemoteAddr()) {
			f.Level, f.Found, f.Effect = precondition.Warn, "not encrypted", "whoever is on the way reads the password's exchange and the clients' ids"
			f.Fix = encryptFix(key)
		}
		return []precondition.Finding{f}
	}
	return []precondition.Finding{judgeTLS(encrypted.ConnectionState(), o.TLSConfig, isLocal(conn.Conn().RemoteAddr()), key, time.Now())}
}

func encryptFix(key string) string {
	return "set sslmode=verify-full and sslrootcert=FILE in " + key
}

// judgeTLS judges an encrypted connection.
func judgeTLS(state tls.ConnectionState, asked *tls.Config, local bool, key string, now time.Time) precondition.Finding {
	f := precondition.Finding{Level: precondition.OK, Object: key, Found: tls.VersionName(state.Version)}
	if len(state.PeerCertificates) > 0 {
		end := state.PeerCertificates[0].NotAfter
		f.Found += ", certificate until " + end.UTC().Format(time.DateOnly)
		if end.Sub(now) < expiresSoon {
			f.Level, f.Effect, f.Fix = precondition.Warn, "at its end clients that check it are refused", "renew the server's certificate (ssl_cert_file), then SELECT pg_reload_conf()"
			return f
		}
	}
	if unchecked := asked != nil && asked.InsecureSkipVerify && asked.VerifyPeerCertificate == nil && asked.VerifyConnection == nil; unchecked && !local {
		f.Level, f.Found = precondition.Warn, f.Found+", which nobody checks"
		f.Effect, f.Fix = "whoever answers in the server's place gets the password and the clients' ids", encryptFix(key)
	}
	return f
}

// isLocal reports whether an address is this machine's own.
func isLocal(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return !ok || tcp.IP.IsLoopback()
}
