// Package httpserve serves HTTP within bounds: of connections, headers, the time that
// a peer may take, and of what may be asked over TCP.
package httpserve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Serve serves the handler until ctx ends, then lets the answers under way finish
// for a moment. It closes the listener. Connections, headers and the time that a
// peer may take are bounded; patience is the time for one answer, 0 for no limit.
func Serve(ctx context.Context, h http.Handler, log *slog.Logger, l net.Listener, patience time.Duration) error {
	bounded := newBoundedListener(l, httpConnections(DescriptorLimit()), patience)
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ConnState:         bounded.noteState,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),

		DisableGeneralOptionsHandler: true, // OPTIONS * is a method like others
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := srv.Serve(bounded); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve http on %s: %w", l.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := srv.Shutdown(bound); err != nil {
			return srv.Close()
		}
		return nil
	})
	return g.Wait()
}

// ReadOnly is the handler of a listener that anybody may reach: it answers GET and
// HEAD alone, and browsers get headers that let no page use the answer. Where the
// listener is on loopback the Host must be one of this machine: a name of
// somebody's own that resolves to 127.0.0.1 (DNS rebinding) makes a page there the
// same origin to a browser.
func ReadOnly(next http.Handler, listener net.Addr) http.Handler {
	tcp, ok := listener.(*net.TCPAddr)
	loopback := ok && tcp.IP.IsLoopback()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "read-only: GET and HEAD; commands reach the daemon over the socket in state.dir", http.StatusMethodNotAllowed)
		case loopback && !isLocalHost(r.Host):
			http.Error(w, "the Host of the request does not name this machine, and http.listen is a loopback address; ask by 127.0.0.1 or localhost, or let a proxy send such a Host", http.StatusMisdirectedRequest)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// isLocalHost reports whether a Host header names this machine by an address or as
// localhost. HTTP/1.0 may leave it out.
func isLocalHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	_, err := netip.ParseAddr(host)
	return host == "" || err == nil || host == "localhost" || strings.HasSuffix(host, ".localhost")
}
