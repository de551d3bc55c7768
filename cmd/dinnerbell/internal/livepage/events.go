package livepage

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	// maxStreams bounds the streams of events. One more is refused; its page asks for
	// the whole page now and then instead.
	maxStreams = 32
	// writePatience is how long a client may take to read an event.
	writePatience = 5 * time.Second
	// maxStreamAge is the age at which a stream ends: the page opens another one, for
	// which it must be allowed to read again.
	maxStreamAge = 10 * time.Minute
)

// streams are the streams of those who look.
type streams struct {
	mu  sync.Mutex // guards all
	all map[chan *frame]struct{}
}

// add adds a stream; false if there are too many.
func (s *streams) add(c chan *frame) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) >= maxStreams {
		return false
	}
	if s.all == nil {
		s.all = map[chan *frame]struct{}{}
	}
	s.all[c] = struct{}{}
	return true
}

func (s *streams) removeStream(c chan *frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, c)
}

func (s *streams) hasStreams() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all) > 0
}

// sendFrame gives each stream the frame. A stream that has not written the one before misses
// this one: it sends what has changed since its last.
func (s *streams) sendFrame(f *frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.all {
		select {
		case c <- f:
		default:
		}
	}
}

// serveEvents streams the page: an event "samples" with what the charts lack, and an
// event "page" with the sections that have changed, each second. It ends with the daemon,
// when the client does not read,
// or at its age.
func (p *Page) serveEvents(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", "text/event-stream")
		return
	}
	frames := make(chan *frame, 1)
	if !p.streams.add(frames) {
		w.Header().Set("Retry-After", "10")
		http.Error(w, fmt.Sprintf("%d pages are open already; this one asks for / instead", maxStreams), http.StatusServiceUnavailable)
		return
	}
	defer p.streams.removeStream(frames)
	s := &eventStream{w: w, control: http.NewResponseController(w), patience: p.patience, sent: map[string]string{}}
	// The server's limits are for short answers. From here on each write has its own.
	if err := s.control.SetReadDeadline(time.Time{}); err != nil {
		http.Error(w, "this connection cannot stream", http.StatusNotImplemented)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")                            // nginx passes each event on at once
	if _, err := fmt.Fprint(w, "retry: 1000\n\n"); err != nil { // after a restart of the daemon, in milliseconds
		return
	}
	if first, err := p.renderFrame(r.Context()); err == nil {
		frames <- first
	}
	end := time.NewTimer(p.streamAge)
	defer end.Stop()
	for {
		select {
		case <-end.C:
			return
		case f := <-frames:
			if err := s.sendFrame(f, &p.ring); err != nil {
				return // the client has gone, or does not read
			}
		case <-r.Context().Done():
			return
		case <-p.ended:
			return
		}
	}
}

// eventStream is one stream of events.
type eventStream struct {
	w        http.ResponseWriter
	control  *http.ResponseController
	patience time.Duration     // how long the client may take to read an event
	sent     map[string]string // the HTML that the client has, by section
	next     int64             // number of the first sample that it lacks
}

// sendFrame sends the samples and the sections that the client lacks.
func (s *eventStream) sendFrame(f *frame, r *ring) error {
	if err := s.control.SetWriteDeadline(time.Now().Add(s.patience)); err != nil {
		return fmt.Errorf("bound a write: %w", err)
	}
	changed := map[string]string{}
	for _, name := range f.names {
		if have, ok := s.sent[name]; !ok || have != f.html[name] {
			changed[name], s.sent[name] = f.html[name], f.html[name]
		}
	}
	samples, next := r.samplesSince(s.next)
	if err := s.writeEvent("samples", newChartData(samples, s.next == 0)); err != nil {
		return err
	}
	s.next = next
	err := s.writeEvent("page", struct {
		Version  string            `json:"version"`
		Sections map[string]string `json:"sections"`
	}{f.Version, changed})
	if err != nil {
		return err
	}
	if err := s.control.Flush(); err != nil {
		return fmt.Errorf("send events: %w", err)
	}
	return nil
}

func (s *eventStream) writeEvent(event string, v any) error {
	text, err := json.Marshal(v) // one line
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	if _, err := fmt.Fprintf(s.w, "event: %s\ndata: %s\n\n", event, text); err != nil {
		return fmt.Errorf("send event: %w", err)
	}
	return nil
}

// chartData are samples as the charts take them: a list for each series; null where no
// campaign was finished.
type chartData struct {
	All     bool       `json:"all"` // they replace what the client has
	Window  float64    `json:"window"`
	At      []int64    `json:"at"`
	Decided []float32  `json:"decided"`
	Shipped []float32  `json:"shipped"`
	Median  []*float32 `json:"median"`
	Slowest []*float32 `json:"slowest"`
}

func newChartData(samples []sample, all bool) chartData {
	d := chartData{All: all, Window: window.Seconds(), At: []int64{}, Decided: []float32{}, Shipped: []float32{}, Median: []*float32{}, Slowest: []*float32{}}
	for i := range samples {
		s := &samples[i]
		d.At, d.Decided, d.Shipped = append(d.At, s.at), append(d.Decided, s.decided), append(d.Shipped, s.shipped)
		d.Median, d.Slowest = append(d.Median, positiveOrNil(&s.median)), append(d.Slowest, positiveOrNil(&s.slowest))
	}
	return d
}

// positiveOrNil returns nil for 0.
func positiveOrNil(x *float32) *float32 {
	if *x <= 0 {
		return nil
	}
	return x
}
