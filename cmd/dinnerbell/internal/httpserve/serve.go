// Package httpserve serves HTTP within bounds: of connections, headers, the time that
// a peer may take, and of what may be asked over TCP.
package httpserve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// Server serves one listener.
type Server struct {
	Handler  http.Handler
	Log      *slog.Logger
	Patience time.Duration // the time for one answer; 0: no limit
	// Certificate returns the certificate of the moment; nil: plain HTTP. Beside an error
	// it may return a former certificate, which then is used.
	Certificate func() (*tls.Certificate, error)
}

// Serve serves until ctx ends, then lets the answers under way finish for a moment. It
// closes the listener. Connections, headers and the time that a peer may take are bounded.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	bounded := newBoundedListener(l, httpConnections(DescriptorLimit()), s.Patience)
	srv := &http.Server{
		Handler:           s.Handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ConnState:         bounded.noteState,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
		Protocols:         &http.Protocols{}, // HTTP/1: one request at a time on a connection

		DisableGeneralOptionsHandler: true, // OPTIONS * is a method like others
	}
	srv.Protocols.SetHTTP1(true)
	serve := srv.Serve
	if s.Certificate != nil {
		srv.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.getCertificate}
		serve = func(l net.Listener) error { return srv.ServeTLS(l, "", "") }
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := serve(bounded); !errors.Is(err, http.ErrServerClosed) {
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

// getCertificate returns the certificate for a handshake.
func (s *Server) getCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	pair, err := s.Certificate()
	if err != nil && pair != nil {
		s.Log.Warn("the certificate of the HTTP listener cannot be read again; the former one goes on", "error", err, "to_mend", "mend the files of http.tls.cert and http.tls.key")
		return pair, nil
	}
	return pair, err
}
