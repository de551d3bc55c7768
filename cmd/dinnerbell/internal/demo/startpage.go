package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"dinnerbell/internal/testenv"
)

// startPageHTML reloads itself once the daemon answers on the same address.
const startPageHTML = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>dinnerbell is starting</title>
<style>:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:4rem auto;max-width:40rem;padding:0 1rem}</style></head>
<body><h1>dinnerbell is starting</h1>
<p>The demo starts Postgres and a Kafka broker, and fills the tables. The live page comes here by itself when the daemon runs.</p>
<script>setInterval(async () => { try { if ((await fetch("/healthz", {cache: "no-store"})).ok) location.reload() } catch {} }, 500)</script>
</body></html>
`

// startPage answers on the address of the live page until the daemon does, and keeps the
// port from other programs meanwhile.
type startPage struct {
	server *http.Server
	done   chan error // the end of the server
}

// openStartPage listens on a free port, prints the address, the first line of every demo,
// and serves the page.
func (d *deployment) openStartPage(ctx context.Context) error {
	port, err := testenv.FreePort()
	if err != nil {
		return err
	}
	d.http = testenv.Loopback(port)
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", d.http)
	if err != nil {
		return fmt.Errorf("open the live page: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = io.WriteString(w, startPageHTML) // the browser has gone
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the daemon of the demo is not started yet", http.StatusServiceUnavailable)
	})
	d.page = &startPage{server: &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}, done: make(chan error, 1)}
	go func() { d.page.done <- d.page.server.Serve(listener) }()
	_, _ = fmt.Fprintf(d.opts.Stderr, "Live page:  http://%s/\n", d.http)
	return nil
}

// closeStartPage ends the page, so that the daemon can listen on its port. It does nothing
// when the page is closed already.
func (d *deployment) closeStartPage() error {
	if d.page == nil {
		return nil
	}
	err := d.page.server.Close()
	if served := <-d.page.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	d.page = nil
	if err != nil {
		return fmt.Errorf("close the page of the start: %w", err)
	}
	return nil
}
