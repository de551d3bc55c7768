package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"dinnerbell/internal/portprobe"
)

// Trouble is why no connection could be made, for an operator.
type Trouble struct {
	Kind string // a few words: "wrong password", "expired certificate"
	Fix  string // the statement or the setting that mends it
}

// ExplainConnect tells the reasons apart for which Connect failed with err. key is the
// configuration key that holds the address, such as "source.url". It may open another
// connection to find out what a port speaks.
func ExplainConnect(ctx context.Context, err error, o *pgx.ConnConfig, key string) Trouble {
	e := connectTrouble{err: err, o: &o.Config, key: key, role: pgx.Identifier{o.User}.Sanitize(), database: pgx.Identifier{o.Database}.Sanitize()}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.fromServer(pgErr)
	}
	if t, ok := e.fromTLS(); ok {
		return t
	}
	return e.fromNetwork(ctx)
}

// AddFix returns err, for which Connect failed, with the statement or the setting that
// mends it, as far as the error alone tells: unlike ExplainConnect it asks nobody. A
// server that starts or stops needs no mending.
func AddFix(err error, o *pgconn.Config, key string) error {
	e := connectTrouble{err: err, o: o, key: key, role: pgx.Identifier{o.User}.Sanitize(), database: pgx.Identifier{o.Database}.Sanitize()}
	fix := ""
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		if pgErr.Code != codeNotNow {
			fix = e.fromServer(pgErr).Fix
		}
	} else if t, ok := e.fromTLS(); ok {
		fix = t.Fix
	} else if t, ok := e.fromError(); ok {
		fix = t.Fix
	} else if closed := findClosed(err); closed != nil {
		fix = e.fromClosed(closed).Fix
	} else if e.isNoPostgres() {
		fix = e.noPostgres().Fix
	}
	if fix == "" {
		return err
	}
	return fmt.Errorf("%w (to mend: %s)", err, fix)
}

// connectTrouble is the failed attempt that is explained.
type connectTrouble struct {
	err            error
	o              *pgconn.Config
	key            string
	role, database string // quoted
}

// SQLSTATEs of refused connections.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
const (
	codeWrongPassword  = "28P01"
	codeNotAuthorized  = "28000"
	codeNoDatabase     = "3D000"
	codeNoPrivilege    = "42501"
	codeTooMany        = "53300"
	codeNotNow         = "57P03"
	codeProtocol       = "08P01"
	codeNotInThisState = "55000"
)

// fromServer explains an error that the server sent.
func (e *connectTrouble) fromServer(err *pgconn.PgError) Trouble {
	switch err.Code {
	case codeWrongPassword:
		if e.o.Password == "" {
			return Trouble{"no password", "put the password of role " + e.role + " into " + e.key + ": the server asks for one"}
		}
		return Trouble{"wrong password, or no such role", "correct the password in " + e.key + "; or, as a superuser: ALTER ROLE " + e.role + " PASSWORD '…'"}
	case codeNotAuthorized:
		return e.fromRefusal(err.Message)
	case codeNoDatabase:
		return Trouble{"wrong database", "CREATE DATABASE " + e.database + "; -- or correct the name in " + e.key}
	case codeNoPrivilege:
		return Trouble{"missing right", "GRANT CONNECT ON DATABASE " + e.database + " TO " + e.role}
	case codeTooMany:
		return e.fromLimit(err.Message)
	case codeNotNow:
		return Trouble{"the server starts, stops or recovers", "wait, and look into the server's log if it lasts"}
	case codeNotInThisState:
		return Trouble{"the database takes no connections", "ALTER DATABASE " + e.database + " ALLOW_CONNECTIONS true"}
	case codeProtocol:
		return Trouble{"a connection pooler", "name Postgres itself in " + e.key + ": a pooler stands there, which refuses the settings that dinnerbell pins"}
	}
	return Trouble{"refused", "see the server's message and its log"}
}

// hbaHost matches the client's address in a message about pg_hba.conf.
var hbaHost = regexp.MustCompile(`host "([^"]+)"`)

// fromRefusal explains the refusals that share SQLSTATE 28000.
func (e *connectTrouble) fromRefusal(message string) Trouble {
	has := func(text string) bool { return strings.Contains(message, text) }
	switch {
	case has("does not exist"):
		return Trouble{"missing role", "CREATE ROLE " + e.role + " LOGIN; -- or correct the name in " + e.key}
	case has("not permitted to log in"):
		return Trouble{"the role may not log in", "ALTER ROLE " + e.role + " LOGIN"}
	case has("valid client certificate"):
		return Trouble{"missing client certificate", "name one that the server's ssl_ca_file has signed: sslcert=FILE and sslkey=FILE in " + e.key}
	case has("certificate authentication failed"):
		return Trouble{"wrong client certificate", "its common name must be the role's, or pg_ident.conf must map it; or correct sslcert in " + e.key}
	case has("pg_hba.conf") && has("no encryption") && !e.encrypts():
		return Trouble{"refused without encryption", "set sslmode=verify-full (or require) in " + e.key + "; if the server has no ssl: " + e.hbaLine(message)}
	case has("pg_hba.conf"):
		return Trouble{"no entry in pg_hba.conf", e.hbaLine(message)}
	}
	return Trouble{"refused", "see pg_hba.conf and the server's log"}
}

// encrypts reports whether the address asks for TLS, at least as a possibility.
func (e *connectTrouble) encrypts() bool {
	if e.o.TLSConfig != nil {
		return true
	}
	for _, f := range e.o.Fallbacks {
		if f.TLSConfig != nil {
			return true
		}
	}
	return false
}

// hbaLine returns the line that lets this client in.
func (e *connectTrouble) hbaLine(message string) string {
	from := "ADDRESS/32"
	if m := hbaHost.FindStringSubmatch(message); m != nil {
		from = m[1] + "/32"
		if strings.Contains(m[1], ":") {
			from = m[1] + "/128"
		}
	}
	return fmt.Sprintf("add to the server's pg_hba.conf: host %s %s %s scram-sha-256; then SELECT pg_reload_conf()", e.database, e.role, from)
}

// fromLimit explains which limit of connections is reached.
func (e *connectTrouble) fromLimit(message string) Trouble {
	switch {
	case strings.Contains(message, "for role"):
		return Trouble{"the role has no connection left", "ALTER ROLE " + e.role + " CONNECTION LIMIT -1"}
	case strings.Contains(message, "for database"):
		return Trouble{"the database has no connection left", "ALTER DATABASE " + e.database + " CONNECTION LIMIT -1"}
	}
	return Trouble{"the server has no connection left", "end idle clients (SELECT * FROM pg_stat_activity), or raise max_connections"}
}

// fromTLS explains a failed handshake; false: it was another error.
func (e *connectTrouble) fromTLS() (Trouble, bool) {
	kind, fix, ok := portprobe.ExplainCertificate(e.err, time.Now(), portprobe.Names{Server: "the server", CA: "sslrootcert in " + e.key, Host: e.key})
	if !ok {
		kind, fix, ok = portprobe.ExplainClientCertificate(e.err, e.clientKeys(), "the server's ssl_ca_file")
	}
	return Trouble{kind, fix}, ok
}

// clientKeys names the settings of the client's certificate.
func (e *connectTrouble) clientKeys() string { return "sslcert and sslkey in " + e.key }

// fromNetwork explains a connection that no server answered, or something else than
// Postgres.
func (e *connectTrouble) fromNetwork(ctx context.Context) Trouble {
	if t, ok := e.fromError(); ok {
		return t
	}
	if !strings.HasPrefix(e.o.Host, "/") && portprobe.SpeaksTLS(ctx, net.JoinHostPort(e.o.Host, fmt.Sprint(e.o.Port))) {
		return Trouble{"no Postgres: the port speaks TLS from the first byte", "name Postgres' own port in " + e.key + ", or, if the port takes Postgres over TLS: sslmode=require&sslnegotiation=direct"}
	}
	if closed := findClosed(e.err); closed != nil {
		return e.fromClosed(closed)
	}
	return e.noPostgres()
}

// fromClosed says what is known of a server that ended the connection during the login: it
// gives no reason. One that refuses a client's certificate sends an alert, which the client
// does not get if the connection is reset at the same time.
func (e *connectTrouble) fromClosed(closed *closedError) Trouble {
	if tc := e.o.TLSConfig; tc != nil && portprobe.HasExpired(tc.Certificates, time.Now()) {
		return Trouble{portprobe.ExpiredClientCertificate, portprobe.RenewClientCertificate(e.clientKeys())}
	}
	if closed.spoke {
		return Trouble{closedKind, "look into its log, and into that of a pooler or proxy in between (" + e.key + "): it crashed, was stopped, or refuses this client without a message"}
	}
	return Trouble{closedKind, "look into the log of what listens at host and port of " + e.key + ": a Postgres that crashed or has no connection left, a proxy that refuses this client, or another program"}
}

// isNoPostgres reports whether something else than Postgres answered.
func (e *connectTrouble) isNoPostgres() bool {
	_, ok := errors.AsType[*notPostgresError](e.err)
	_, tooLarge := errors.AsType[*pgproto3.ExceededMaxBodyLenErr](e.err)
	return ok || tooLarge
}

func (e *connectTrouble) noPostgres() Trouble {
	return Trouble{"no Postgres answered", "see what listens at host and port of " + e.key + ": a pooler, a proxy, another program?"}
}

// fromError explains a connection that no server answered as far as the error tells.
func (e *connectTrouble) fromError() (Trouble, bool) {
	_, noName := errors.AsType[*net.DNSError](e.err)
	timeout, _ := errors.AsType[net.Error](e.err)
	text := e.err.Error()
	switch {
	case noName:
		return Trouble{"unknown host", "correct the host in " + e.key + ", or the resolver of this machine"}, true
	case errors.Is(e.err, syscall.ECONNREFUSED), errors.Is(e.err, syscall.ENOENT):
		return Trouble{"nobody listens there", "start Postgres, or correct host and port in " + e.key + " (listen_addresses of the server, a firewall)"}, true
	case errors.Is(e.err, context.DeadlineExceeded), timeout != nil && timeout.Timeout():
		return Trouble{"no answer", "see whether the host is up and a firewall lets port " + fmt.Sprint(e.o.Port) + " through (" + e.key + ")"}, true
	case errors.Is(e.err, syscall.EHOSTUNREACH), errors.Is(e.err, syscall.ENETUNREACH):
		return Trouble{"no route", "correct the host in " + e.key + ", or the network between"}, true
	case strings.Contains(text, "read only connection"), strings.Contains(text, "standby"):
		return Trouble{"no primary", "name all servers in " + e.key + ": postgres://…@db1:5432,db2:5432/…?target_session_attrs=read-write"}, true
	}
	if strings.Contains(text, refusedTLS) {
		return Trouble{"the server takes no TLS", "ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf(); -- with a certificate in ssl_cert_file; or, in a network of your own alone, set sslmode=disable in " + e.key}, true
	}
	return Trouble{}, false
}
