package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/httpserve"
)

// listenHTTP opens the TCP listener. A name that turned out to be an address off loopback
// is refused as such an address is.
func listenHTTP(ctx context.Context, cfg *config.Config) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.HTTP.Listen)
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err // without the address again
		}
		return nil, fmt.Errorf("listen on http.listen %s: %w", cfg.HTTP.Listen, err)
	}
	if err := cfg.HTTP.CheckReach(hostOf(l.Addr())); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", config.ErrInvalid, err), l.Close())
	}
	return l, nil
}

// hostOf returns the address of a listener without the port.
func hostOf(at net.Addr) string {
	host, _, _ := net.SplitHostPort(at.String()) // a listener has both
	return host
}

// newHTTPServer makes the server of the TCP listener. The listener answers to its own name,
// which no stranger has given it.
func (s *supervisor) newHTTPServer(readOnly http.Handler, at net.Addr) *httpserve.Server {
	own, _, _ := net.SplitHostPort(s.Config.HTTP.Listen) // Validate has tried it
	access := httpserve.Access{Token: s.Config.HTTPToken, Hosts: append([]string{own}, s.Config.HTTP.Hosts...), Loopback: config.IsLoopbackHost(hostOf(at))}
	server := &httpserve.Server{Handler: httpserve.ReadOnly(readOnly, access, s.Logger), Log: s.Logger, Patience: httpserve.AnswerPatience}
	if s.Config.HTTP.TLS.IsSet() {
		reader := config.NewCertificateReader(s.Config.HTTP.TLS)
		_, _ = reader.Read() // the pair of the start, for a first connection in the middle of a renewal, which tells an error too
		server.Certificate = reader.Read
	}
	return server
}
