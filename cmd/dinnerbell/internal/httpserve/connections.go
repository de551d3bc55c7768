package httpserve

import (
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// Most descriptors are for the work: connections to Postgres and Kafka, tables of
// the local state. HTTP gets an eighth of them. Go has raised the soft limit to the
// hard one before main began (package os).
const (
	fewDescriptors     = 1024 // below, a large local state or many lanes may run out
	minHTTPConnections = 8
	maxHTTPConnections = 256

	// AnswerPatience is how long a connection over TCP keeps its place with one
	// answer. All answers are short, so a slower client does not read.
	AnswerPatience = 5 * time.Second
)

// DescriptorLimit returns how many descriptors the process may have open; 0 if
// unknown.
func DescriptorLimit() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return limit.Cur
}

// httpConnections returns how many connections a listener holds under a descriptor
// limit.
func httpConnections(descriptors uint64) int {
	if descriptors == 0 {
		return minHTTPConnections
	}
	return int(max(minHTTPConnections, min(maxHTTPConnections, descriptors/8)))
}

// WarnOfFewDescriptors logs a low limit before work fails for want of descriptors.
func WarnOfFewDescriptors(log *slog.Logger, descriptors uint64) {
	if descriptors > 0 && descriptors < fewDescriptors {
		log.Warn("few file descriptors: a large local state or many lanes need more",
			"limit", descriptors, "wanted", fewDescriptors, "to_mend", "ulimit -n 65536, LimitNOFILE=65536 of the systemd unit, or --ulimit nofile=65536 of the container")
	}
}

// boundedListener holds at most limit connections. For one more it closes the one
// that has waited longest for a request, or has not read its answer for longer than
// patience; without such a one it closes the new one. So peers that only connect
// cannot keep a health check out.
type boundedListener struct {
	net.Listener

	limit    int
	patience time.Duration // 0: without end

	mu   sync.Mutex // guards open
	open map[net.Conn]connectionState
}

// connectionState is the time since which a connection is in its state: busy with a
// request, or waiting for one.
type connectionState struct {
	since time.Time
	busy  bool
}

func newBoundedListener(l net.Listener, limit int, patience time.Duration) *boundedListener {
	return &boundedListener{Listener: l, limit: limit, patience: patience, open: map[net.Conn]connectionState{}}
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.makeRoom(conn) {
			return conn, nil
		}
		_ = conn.Close() // there is no room for it
	}
}

// makeRoom makes room for conn; false if all connections are busy.
func (l *boundedListener) makeRoom(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) >= l.limit {
		oldest := l.oldestWaiting()
		if oldest == nil {
			return false
		}
		delete(l.open, oldest)
		_ = oldest.Close() // the server sees it and forgets the connection
	}
	l.open[conn] = connectionState{since: time.Now()}
	return true
}

func (l *boundedListener) oldestWaiting() (oldest net.Conn) {
	for c, s := range l.open {
		slow := l.patience > 0 && time.Since(s.since) > l.patience
		if (!s.busy || slow) && (oldest == nil || s.since.Before(l.open[oldest].since)) {
			oldest = c
		}
	}
	return oldest
}

// noteState records a change of a connection's state, as the ConnState of an
// http.Server.
func (l *boundedListener) noteState(conn net.Conn, state http.ConnState) {
	if over, ok := conn.(*tls.Conn); ok {
		conn = over.NetConn()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ours := l.open[conn]; !ours {
		return
	}
	switch state {
	case http.StateClosed, http.StateHijacked:
		delete(l.open, conn)
	default:
		l.open[conn] = connectionState{since: time.Now(), busy: state == http.StateActive}
	}
}
