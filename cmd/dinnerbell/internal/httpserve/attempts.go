package httpserve

import (
	"net/http"
	"net/netip"
	"sync"
	"time"
)

const (
	// attemptPace is how long an address pays for a wrong token.
	attemptPace = 6 * time.Second
	// freeAttempts is how many wrong tokens an address may send at once.
	freeAttempts = 10
	// maxAddresses bounds the memory: the addresses that paid longest ago are forgotten.
	maxAddresses = 4096
)

// attemptLimiter bounds the wrong tokens of an address. An address has a debt that each
// wrong token adds attemptPace to, and that goes down with time; from freeAttempts times
// attemptPace on nothing from it is compared.
type attemptLimiter struct {
	now func() time.Time

	mu   sync.Mutex                 // guards paid
	paid map[netip.Prefix]time.Time // when the debt is paid
}

func newAttemptLimiter(now func() time.Time) *attemptLimiter {
	return &attemptLimiter{now: now, paid: map[netip.Prefix]time.Time{}}
}

// waitTime returns how long an address must wait for its next attempt; 0 or less: not at all.
func (l *attemptLimiter) waitTime(peer netip.Prefix) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	paid, known := l.paid[peer]
	if !known {
		return 0
	}
	return paid.Sub(l.now()) - (freeAttempts-1)*attemptPace
}

// noteFailure adds a wrong token; it reports whether the address has to wait now.
func (l *attemptLimiter) noteFailure(peer netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	from := l.paid[peer]
	if from.Before(now) {
		from = now
	}
	if _, known := l.paid[peer]; !known && len(l.paid) >= maxAddresses {
		l.forgetLocked(now)
	}
	l.paid[peer] = from.Add(attemptPace)
	return l.paid[peer].Sub(now) > (freeAttempts-1)*attemptPace
}

// forgetLocked removes the addresses without a debt; if all have one, the one with the
// smallest. The caller holds mu.
func (l *attemptLimiter) forgetLocked(now time.Time) {
	var least netip.Prefix
	for peer, paid := range l.paid {
		if paid.Before(now) {
			delete(l.paid, peer)
		} else if best, ok := l.paid[least]; !ok || paid.Before(best) {
			least = peer
		}
	}
	if len(l.paid) >= maxAddresses {
		delete(l.paid, least)
	}
}

// peerOf returns the address that a request came from; of IPv6 the network, in which one
// machine has as many addresses as it likes. The zero value if there is none.
func peerOf(r *http.Request) netip.Prefix {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Prefix{}
	}
	addr := at.Addr().Unmap()
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	peer, _ := addr.WithZone("").Prefix(bits) // bits fit
	return peer
}
