package relay

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait.
const patience = time.Minute

// pair is a relay with one connection through it.
type pair struct {
	*Relay

	t              *testing.T
	client, server net.Conn
}

// newPair connects through a relay. Nothing answers: the test holds both ends.
func newPair(t *testing.T, o Options) *pair {
	t.Helper()
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = upstream.Close() })
	if o.Route == nil {
		o.Route = FixedRoute(upstream.Addr().String())
	}
	r, err := StartRelay(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	p := &pair{Relay: r, t: t}
	p.client, err = net.Dial("tcp", r.Address())
	if err != nil {
		t.Fatal(err)
	}
	p.server, err = upstream.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{p.client, p.server} {
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// send writes text to one end.
func (p *pair) send(to net.Conn, text string) {
	p.t.Helper()
	if _, err := io.WriteString(to, text); err != nil {
		p.t.Fatal(err)
	}
}

// expect reads text from one end, and nothing else.
func (p *pair) expect(from net.Conn, text string) {
	p.t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(from, got); err != nil || string(got) != text {
		p.t.Fatalf("read %q, %v, want %q", got, err, text)
	}
}

// Both directions pass all bytes, and the end of one side ends the other, after
// the last bytes.
func TestPassesOn(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	p.send(p.client, "question")
	p.expect(p.server, "question")
	long := strings.Repeat("0123456789abcdef", 100_000)
	go func() {
		_, _ = io.WriteString(p.server, long)
		_ = p.server.Close()
	}()
	got, err := io.ReadAll(p.client)
	if err != nil || string(got) != long {
		t.Errorf("read %d bytes, %v, want %d and the end", len(got), err, len(long))
	}
}

// Latency delays bytes by its length and does not limit their rate: a hundred
// writes take one latency, not a hundred.
func TestLatency(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	const late, writes = 300 * time.Millisecond, 100
	p.Disturb(FromServer, Faults{Latency: late})
	began := time.Now()
	for range writes {
		p.send(p.server, "x")
		p.send(p.client, "y") // keeps the writes apart; the other direction has no latency
		p.expect(p.server, "y")
	}
	p.expect(p.client, strings.Repeat("x", writes))
	if took := time.Since(began); took < late || took > writes*late/2 {
		t.Errorf("took %v, want a little more than %v", took, late)
	}
}

func TestBandwidth(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	p.Disturb(FromClient, Faults{BytesPerSecond: 100_000})
	began := time.Now()
	text := strings.Repeat("z", 30_000)
	p.send(p.client, text)
	p.expect(p.server, text)
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("30,000 bytes at 100,000 a second took %v", took)
	}
}

// Held bytes arrive late and complete; the end that came behind them too.
func TestHold(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	p.Disturb(FromServer, Faults{Hold: true})
	p.send(p.server, "held")
	_ = p.server.Close()
	p.expectSilence(p.client)
	p.Disturb(FromServer, Faults{})
	got, err := io.ReadAll(p.client)
	if err != nil || string(got) != "held" {
		t.Errorf("read %q, %v", got, err)
	}
}

// expectSilence expects that nothing arrives for a moment, not even the end.
func (p *pair) expectSilence(c net.Conn) {
	p.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		p.t.Fatal(err)
	}
	n, err := c.Read(make([]byte, 10))
	var late net.Error
	if n != 0 || !errors.As(err, &late) || !late.Timeout() {
		p.t.Fatalf("read %d bytes, %v, want silence", n, err)
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
}

// A black hole loses one direction and the end, and the other direction works.
// When it ends, the connection that lost bytes closes.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	p.Disturb(FromClient, Faults{BlackHole: true})
	p.send(p.client, "lost")
	p.expectSilence(p.server)
	p.send(p.server, "arrives")
	p.expect(p.client, "arrives")
	p.Disturb(FromClient, Faults{})
	for name, c := range map[string]net.Conn{"client": p.client, "server": p.server} {
		if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v, want a reset", name, err)
		}
	}
}

// The end of a connection is lost too; a connection that lost nothing lives on.
func TestBlackHoleLosesTheEnd(t *testing.T) {
	t.Parallel()
	p, quiet := newPair(t, Options{}), newPair(t, Options{})
	for _, each := range []*pair{p, quiet} {
		each.Disturb(FromClient, Faults{BlackHole: true})
	}
	_ = p.client.Close()
	p.expectSilence(p.server)
	for _, each := range []*pair{p, quiet} {
		each.Disturb(FromClient, Faults{})
	}
	if _, err := p.server.Read(make([]byte, 10)); err == nil {
		t.Error("the connection lives on")
	}
	quiet.send(quiet.client, "still here")
	quiet.expect(quiet.server, "still here")
}

// Refuse resets what is open and refuses what is new; Listen takes the same
// port again.
func TestRefuse(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	p.send(p.client, "question")
	p.expect(p.server, "question")
	p.Refuse()
	for name, c := range map[string]net.Conn{"client": p.client, "server": p.server} {
		if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v, want a reset", name, err)
		}
	}
	if _, err := net.Dial("tcp", p.Address()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v, want a refusal", err)
	}
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	again, err := net.Dial("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

func TestLateClose(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{})
	const late = 300 * time.Millisecond
	p.Disturb(FromServer, Faults{LateClose: late})
	began := time.Now()
	p.send(p.server, "last")
	_ = p.server.Close()
	p.expect(p.client, "last")
	if _, err := p.client.Read(make([]byte, 10)); !errors.Is(err, io.EOF) || time.Since(began) < late {
		t.Errorf("%v after %v, want the end after %v", err, time.Since(began), late)
	}
}

// A pump can change what passes, and cuts the connection with its error; what
// it passed before arrives.
func TestPumpCuts(t *testing.T) {
	t.Parallel()
	p := newPair(t, Options{Pumps: func() (up, down Pump) {
		return CopyBytes, func(in *bufio.Reader, out *bufio.Writer) error {
			for {
				line, err := in.ReadBytes('\n')
				if err != nil || bytes.HasPrefix(line, []byte("cut")) {
					return errors.Join(err, errors.New("cut"))
				}
				if _, err := out.Write(bytes.ToUpper(line)); err != nil {
					return err
				}
			}
		}
	}})
	p.send(p.server, "answer\ncut\nnever\n")
	got, _ := io.ReadAll(p.client) // the end may be a reset: the relay closes with unread bytes
	if string(got) != "ANSWER\n" {
		t.Errorf("read %q", got)
	}
}

// Faults spare exempt connections.
func TestExempt(t *testing.T) {
	t.Parallel()
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = upstream.Close() })
	r, err := StartRelay(Options{Route: func(client *bufio.Reader) (Route, error) {
		kind, err := client.ReadByte()
		return Route{Upstream: upstream.Addr().String(), Head: []byte{kind}, Exempt: kind == 'e'}, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	r.Disturb(FromClient, Faults{Hold: true})
	for _, kind := range []string{"x", "e"} {
		client, err := net.Dial("tcp", r.Address())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		p := &pair{Relay: r, t: t}
		p.send(client, kind) // the route reads it before the relay connects
		server, err := upstream.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Close() })
		if kind == "e" {
			p.expect(server, kind)
		} else {
			p.expectSilence(server)
		}
	}
}
