package stream

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// relay forwards TCP until it is muted: then it reads everything and forwards
// nothing on, as a network that has gone does.
type relay struct {
	net.Listener
	target string
	mu     sync.Mutex // guards muted and open
	muted  bool
	open   []net.Conn
	done   sync.WaitGroup
}

func newRelay(t *testing.T, target string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: l, target: target}
	r.done.Go(r.accept)
	t.Cleanup(func() {
		_ = l.Close()
		r.mu.Lock()
		for _, c := range r.open {
			_ = c.Close()
		}
		r.mu.Unlock()
		r.done.Wait()
	})
	return r
}

func (r *relay) mute(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.muted = on
}

func (r *relay) isMuted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.muted
}

func (r *relay) accept() {
	for {
		client, err := r.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", r.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		r.mu.Lock()
		r.open = append(r.open, client, server)
		r.mu.Unlock()
		r.done.Go(func() { r.pass(server, client) })
		r.done.Go(func() { r.pass(client, server) })
	}
}

// pass copies one direction. Bytes that were read while muted are lost, so a
// connection that lived through it stays useless.
func (r *relay) pass(to io.WriteCloser, from io.Reader) {
	buf, lost := make([]byte, 32<<10), false
	for {
		n, err := from.Read(buf)
		lost = lost || n > 0 && r.isMuted()
		if !lost && n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			if !lost {
				_ = to.Close()
			}
			return
		}
	}
}

// A sink that answers no more, without closing anything: the lane reports it and
// takes over again, instead of waiting for ever.
func TestSilentSinkIsNoticed(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a", "b"}})
	direct, err := url.Parse(w.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	r := newRelay(t, direct.Host)
	through := *direct
	through.Host = r.Addr().String()
	w.cfg.Sink.URL = func() (string, error) { return through.String(), nil }
	w.cfg.SinkTimeout = time.Second
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	w.expect(map[string][]string{"c1": {"a", "b"}})

	r.mute(true)
	w.produce(0, encodeCampaign(w.campaign("c2", "r1")))
	envtest.Until(t, patience, func() error {
		if s := svc.Status(); s.Ready() || s.Lanes[0].LastError == "" {
			return fmt.Errorf("the lane does not notice: %+v", s.Lanes)
		}
		return nil
	})
	r.mute(false)
	w.expect(map[string][]string{"c1": {"a", "b"}, "c2": {"a", "b"}})
}
