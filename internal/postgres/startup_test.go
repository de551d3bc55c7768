package postgres

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/testenv/envtest/hostile"
)

// A server that has shown nothing yet cannot have this process work for seconds, in which
// no signal ends the process.
func TestScramIterationsAreBounded(t *testing.T) {
	t.Parallel()
	for iterations, refused := range map[int]bool{4096: false, 600_000: false, maxIterations + 1: true, 10_000_000: true, 1 << 40: true} {
		peer := hostile.Start(t, hostile.Scram(iterations))
		o, err := Parse("postgres://u:x@" + peer.Address() + "/de?sslmode=disable")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err = ConnectWalsender(ctx, &o.Config) // a peer that may ask is silent then
		cancel()
		if err == nil || strings.Contains(err.Error(), fmt.Sprintf(`asks for "%d" iterations`, iterations)) != refused || !strings.Contains(err.Error(), peer.Address()) {
			t.Errorf("%d iterations: %v", iterations, err)
		}
	}
}

// A server that talks for ever, and lets nobody in, is left.
func TestStartupIsBounded(t *testing.T) {
	t.Parallel()
	letIn := hostile.Message('R', "\x00\x00\x00\x00")
	for name, serve := range map[string]func(net.Conn){
		"notices": hostile.Endless(nil, hostile.Notices), "parameters": hostile.Endless(letIn, hostile.Parameters),
	} {
		peer := hostile.Start(t, serve)
		err := connectError(t, "postgres://u:x@"+peer.Address()+"/de?sslmode=disable")
		if !strings.Contains(err.Error(), peer.Address()+": the server has sent more than 1024 KiB and has not let us in") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What no Postgres sends is said to be none.
func TestOtherProgramsAreNoPostgres(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		"HTTP/1.1 400 Bad Request\r\n": `it has "HTTP/" where a message begins`,
		"\x00\x00\x00\x00\x00":         `it has "\x00\x00\x00\x00\x00" where a message begins`,
		"R\x00\x00\x00\x03":            `it has "R\x00\x00\x00\x03" where a message begins`,
		"SSH-2.0-OpenSSH_9.2\r\n":      "claims a message of 1397239086 bytes",
	} {
		peer := hostile.Start(t, hostile.Answer([]byte(answer)))
		if err := connectError(t, "postgres://u:x@"+peer.Address()+"/de?sslmode=disable"); !strings.Contains(err.Error(), peer.Address()+": the server") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", answer, err, want)
		}
	}
}

// Behind the startup the bounds end, and messages that come in pieces are followed.
func TestStartupEnds(t *testing.T) {
	t.Parallel()
	long := string(hostile.Message('N', "SWARNING\x00VWARNING\x00C01000\x00M"+strings.Repeat("x", 100_000)+"\x00\x00"))
	sent := string(hostile.Message('R', "\x00\x00\x00\x00")) + strings.Repeat(long, 5) + string(hostile.Message('Z', "I")) +
		strings.Repeat(long, 20) + string(hostile.Message('C', "SELECT 1\x00")) + string(hostile.Message('Z', "I"))
	peer := hostile.Start(t, func(c net.Conn) {
		if _, err := c.Read(make([]byte, 8192)); err != nil {
			return
		}
		for i := 0; i < len(sent); i += 977 {
			if _, err := c.Write([]byte(sent[i:min(i+977, len(sent))])); err != nil {
				return
			}
		}
		hostile.Silence(c)
	})
	o, err := Parse("postgres://u:x@" + peer.Address() + "/de?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "SELECT 1", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // the peer is silent
}
