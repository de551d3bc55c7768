// Package livepage is the page at `/`: what the daemon is doing, for people. It is
// rendered here, as plain HTML that needs no script; a script keeps it current from a
// stream of server-sent events and draws the charts. Nothing of it comes from another
// server, and no client id is on it: anybody who reaches the listener may read it.
package livepage

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/status"
	"dinnerbell/stream"
	"dinnerbell/stream/sink"
)

//go:embed assets
var assets embed.FS

// Daemon is what the page shows. Its functions are called from one goroutine at a time
// and must be cheap, but for Open.
type Daemon struct {
	Status   func() status.Report
	FanOuts  func() []stream.FanOut
	Counters func() stream.Counters
	// Open lists the campaigns that wait, at most limit of each lane and state. It asks
	// Postgres, and is called only while somebody looks.
	Open func(ctx context.Context, limit int) ([]sink.OpenCampaign, error)
}

const (
	// openEvery is how often Postgres is asked for the waiting campaigns while somebody
	// looks, and openLimit how many of each lane and state.
	openEvery = 5 * time.Second
	openLimit = 10
)

// Page serves the page. Run must run beside its handler.
type Page struct {
	daemon   Daemon
	log      *slog.Logger
	began    time.Time
	sections *template.Template
	ring     ring
	streams  streams
	ended    chan struct{} // closed when Run returns: streams end
	patience time.Duration // see writePatience

	streamAge time.Duration // at which a stream ends; a test shortens it

	mu      sync.Mutex // guards what follows
	open    []sink.OpenCampaign
	openAt  time.Time // of the last attempt
	openErr error
	reading bool // an attempt is under way
}

// New makes the page of a daemon.
func New(d Daemon, log *slog.Logger) (*Page, error) {
	t, err := template.New("").Funcs(functions).ParseFS(assets, "assets/*.html")
	if err != nil {
		return nil, fmt.Errorf("parse live page: %w", err)
	}
	return &Page{daemon: d, log: log, began: time.Now(), sections: t, ended: make(chan struct{}), patience: writePatience, streamAge: maxStreamAge}, nil
}

// Run takes a sample each second, and sends the page to those who look at it, until ctx
// ends. Nothing is rendered while nobody looks.
func (p *Page) Run(ctx context.Context) error {
	defer close(p.ended)
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			p.ring.add(now, p.daemon.Counters())
			if !p.streams.hasStreams() {
				continue
			}
			f, err := p.renderFrame(ctx)
			if err != nil {
				p.log.Error("the live page cannot be rendered", "error", err)
				continue
			}
			p.streams.sendFrame(f)
		case <-ctx.Done():
			return nil
		}
	}
}

// frame is the page at one moment: the HTML of each section, by name.
type frame struct {
	Version string
	names   []string
	html    map[string]string
}

// sectionNames are the parts of the page that change, in their order.
var sectionNames = []string{"announce", "head", "tiles", "campaigns", "source", "lanes", "letters", "events", "minutes"}

// renderFrame renders all sections.
func (p *Page) renderFrame(ctx context.Context) (*frame, error) {
	v := p.buildView(ctx)
	f := &frame{Version: v.Status.Version, names: sectionNames, html: make(map[string]string, len(sectionNames))}
	var buf bytes.Buffer
	for _, name := range sectionNames {
		buf.Reset()
		if err := p.sections.ExecuteTemplate(&buf, name, v); err != nil {
			return nil, fmt.Errorf("render section %s: %w", name, err)
		}
		f.html[name] = buf.String()
	}
	return f, nil
}

// policy lets the page load its own script and styles, and nothing else; no page may
// frame it.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// ServeHTTP answers for `/` and for everything below `/live/`.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	switch r.URL.Path {
	case "/":
		p.servePage(w, r)
	case "/live/events":
		p.serveEvents(w, r)
	case "/live/page.js":
		serveAsset(w, r, "page.js", "text/javascript; charset=utf-8")
	case "/live/page.css":
		serveAsset(w, r, "page.css", "text/css; charset=utf-8")
	case "/live/uplot.js":
		serveAsset(w, r, "uplot.js", "text/javascript; charset=utf-8")
	case "/live/uplot.css":
		serveAsset(w, r, "uplot.css", "text/css; charset=utf-8")
	case "/live/uplot-LICENSE.txt":
		serveAsset(w, r, "uplot-LICENSE.txt", "text/plain; charset=utf-8")
	default:
		http.Error(w, "nothing here; see /", http.StatusNotFound)
	}
}

func (p *Page) servePage(w http.ResponseWriter, r *http.Request) {
	var buf bytes.Buffer
	if err := p.sections.ExecuteTemplate(&buf, "page.html", p.buildView(r.Context())); err != nil {
		p.log.Error("the live page cannot be rendered", "error", err)
		http.Error(w, "the page cannot be rendered; see the daemon's log, or /api/status", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(buf.Bytes()) // the client has gone: nothing to do about it
}

// serveAsset answers with an embedded file. Browsers ask again each time: after an
// upgrade of the daemon an old script would meet a new page.
func serveAsset(w http.ResponseWriter, r *http.Request, name, contentType string) {
	text, err := assets.ReadFile("assets/" + name)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-cache")
	_, _ = w.Write(text) // the client has gone: nothing to do about it
}

// buildView gathers what the page shows now.
func (p *Page) buildView(ctx context.Context) *view {
	now := time.Now()
	open, openErr := p.openCampaigns(ctx, now)
	samples, _ := p.ring.samplesSince(0)
	v := &view{Now: now.UTC(), Began: p.began, Status: p.daemon.Status(), OpenError: openErr, Rate: computeRate(samples), Minutes: groupMinutes(samples)}
	v.Median, v.P99 = p.ring.latencyQuantiles()
	v.addCampaigns(p.daemon.FanOuts(), open)
	v.setHead()
	return v
}

// openCampaigns returns the waiting campaigns as last read, and begins to read them
// again if that was some time ago. The first reader waits a moment for the answer.
func (p *Page) openCampaigns(ctx context.Context, now time.Time) ([]sink.OpenCampaign, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reading || now.Sub(p.openAt) < openEvery {
		return p.open, p.openErr
	}
	p.reading, p.openAt = true, now
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), openEvery)
		defer cancel()
		list, err := p.daemon.Open(ctx, openLimit)
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.openErr, p.reading = err, false; err == nil {
			p.open = list
		}
	}()
	p.mu.Unlock()
	select {
	case <-done:
	case <-time.After(openPatience):
	case <-ctx.Done():
	}
	p.mu.Lock()
	return p.open, p.openErr
}

// openPatience is how long a rendering waits for the list of waiting campaigns; a later
// one shows it.
const openPatience = 300 * time.Millisecond
