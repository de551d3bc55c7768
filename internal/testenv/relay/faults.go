package relay

import (
	"math/rand/v2"
	"net"
	"time"
)

// Direction is the direction in which bytes flow.
type Direction int

// The two directions of a connection.
const (
	FromClient Direction = iota
	FromServer
)

// Faults are the disturbances of one direction; they combine. The zero value
// disturbs nothing.
type Faults struct {
	// Latency delays bytes without limiting their rate; Jitter adds or takes
	// away up to as much, at random. Bytes keep their order.
	Latency, Jitter time.Duration
	// BytesPerSecond is the bandwidth of each connection; 0 is unlimited.
	BytesPerSecond int
	// Hold keeps bytes back and loses none: they follow when Hold ends.
	Hold bool
	// BlackHole loses bytes and the connection's end, as after the silent loss
	// of a peer or of a firewall's entry.
	BlackHole bool
	// LateClose is how long the receiver learns nothing of the sender's close.
	LateClose time.Duration
}

// delivered is what a pump wrote at once, and when it is due.
type delivered struct {
	bytes []byte
	due   time.Time
}

// queueLength is how many writes of a pump may be under way in a direction.
const queueLength = 256

// lane carries one direction of a link: a pump writes to it, and its goroutine
// writes to the peer.
type lane struct {
	link      *link
	direction Direction
	peer      net.Conn
	queue     chan delivered
	exempt    bool
}

// Write queues a copy of the bytes. The bufio.Writer of a pump calls it.
func (a *lane) Write(p []byte) (int, error) {
	f, _ := a.faults()
	late := f.Latency
	if f.Jitter > 0 {
		late += rand.N(2*f.Jitter) - f.Jitter
	}
	select {
	case a.queue <- delivered{append([]byte(nil), p...), time.Now().Add(late)}:
		return len(p), nil
	case <-a.link.ended:
		return 0, net.ErrClosed
	}
}

func (a *lane) faults() (Faults, <-chan struct{}) {
	f, changed := a.link.relay.currentFaults(a.direction)
	if a.exempt {
		f = Faults{}
	}
	return f, changed
}

// deliverAll writes the queue to the peer until the pump has ended, and then
// passes the end on.
func (a *lane) deliverAll() {
	for d := range a.queue {
		if waitUnless(a.link.ended, time.Until(d.due)) {
			a.deliver(d.bytes)
		}
	}
	for {
		f, changed := a.faults()
		if !f.Hold && !f.BlackHole {
			waitUnless(a.link.ended, f.LateClose)
			a.link.closeNow(false)
			return
		}
		if f.BlackHole && !a.link.relay.noteLost(a.link, a.direction) {
			continue
		}
		select {
		case <-changed:
		case <-a.link.ended:
			return
		}
	}
}

// deliver writes bytes under the faults of the moment.
func (a *lane) deliver(p []byte) {
	for len(p) > 0 {
		f, changed := a.faults()
		switch {
		case f.Hold:
			select {
			case <-changed:
				continue
			case <-a.link.ended:
				return
			}
		case f.BlackHole:
			if a.link.relay.noteLost(a.link, a.direction) {
				return
			}
			continue // healed in this moment
		}
		n := len(p)
		if f.BytesPerSecond > 0 { // in slices of a twentieth of a second
			n = min(n, max(1, f.BytesPerSecond/20))
			if !waitUnless(a.link.ended, time.Duration(n)*time.Second/time.Duration(f.BytesPerSecond)) {
				return
			}
		}
		if _, err := a.peer.Write(p[:n]); err != nil {
			a.link.closeNow(false)
			return
		}
		p = p[n:]
	}
}
