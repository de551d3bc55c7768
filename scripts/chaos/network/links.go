// Package network puts relays between a daemon and its servers. They cut,
// delay and silence connections and swallow single answers.
package network

import (
	"bufio"
	"context"
	"fmt"
	"sync"
	"time"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/relay"
)

// The four connections of a daemon.
const (
	Replication = "replication"
	SQL         = "sql"
	Sink        = "sink"
	Kafka       = "kafka"
)

// Names are the names of the links.
var Names = []string{Replication, SQL, Sink, Kafka}

// Links is one daemon's network. Every connection passes a link, and the links
// to the two sinks know the protocol well enough to swallow one answer:
//
//	source.url ─ splitter ─┬─ replication ─── Postgres
//	                       └─ sql ─────────── Postgres
//	sink.url ───────────────── sink (COMMIT) ─ Postgres
//	kafka.brokers ──────────── kafka (EndTxn) ─ broker
//
// The daemon has one source.url; the splitter separates replication from other
// connections by the startup packet.
type Links struct {
	Proxies                map[string]*Link
	splitter               *relay.Relay
	CommitTrap, EndTxnTrap answerTrap
}

// Link is a relay that can be disturbed. The fault that works on the link holds
// Busy.
type Link struct {
	Busy  sync.Mutex
	relay *relay.Relay
}

// NewLinks starts the network between a daemon and the two servers (host:port).
func NewLinks(postgres, broker string) (l *Links, err error) {
	l = &Links{Proxies: map[string]*Link{}}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	options := map[string]relay.Options{
		Replication: {Route: relay.FixedRoute(postgres)},
		SQL:         {Route: relay.FixedRoute(postgres)},
		Sink: {Route: relay.FixedRoute(postgres), Pumps: func() (up, down relay.Pump) {
			return relay.CopyBytes, loseCommit(&l.CommitTrap)
		}},
		Kafka: {Route: relay.FixedRoute(broker), Pumps: func() (up, down relay.Pump) {
			wire := newKafkaWire(l.Proxies[Kafka].relay.Port(), &l.EndTxnTrap)
			return wire.passRequests, wire.passResponses
		}},
	}
	for _, name := range Names {
		r, err := relay.StartRelay(options[name])
		if err != nil {
			return nil, fmt.Errorf("start link %s: %w", name, err)
		}
		l.Proxies[name] = &Link{relay: r}
	}
	l.splitter, err = relay.StartRelay(relay.Options{Route: l.splitByStartup})
	return l, err
}

// splitByStartup routes replication connections to one link and all others to
// the other.
func (l *Links) splitByStartup(client *bufio.Reader) (relay.Route, error) {
	packet, replication, err := relay.ReadStartup(client)
	if err != nil {
		return relay.Route{}, err
	}
	name := SQL
	if replication {
		name = Replication
	}
	return relay.Route{Upstream: l.Proxies[name].relay.Address(), Head: packet}, nil
}

// Close ends all connections and relays.
func (l *Links) Close() {
	if l.splitter != nil {
		l.splitter.Close()
	}
	for _, k := range l.Proxies {
		k.relay.Close()
	}
}

// SourceURL replaces the address in a Postgres URL by the splitter's.
func (l *Links) SourceURL(direct string) (string, error) { return l.splitter.ReplaceHost(direct) }

// SinkURL replaces the address in a Postgres URL by the sink link's.
func (l *Links) SinkURL(direct string) (string, error) {
	return l.Proxies[Sink].relay.ReplaceHost(direct)
}

// Broker is the address of the Kafka link.
func (l *Links) Broker() string { return l.Proxies[Kafka].relay.Address() }

// Cut resets the link's connections and refuses new ones for a while.
func (k *Link) Cut(ctx context.Context, d time.Duration) error {
	k.relay.Refuse()
	testenv.Pause(ctx, d)
	return k.relay.Listen()
}

// Delay adds latency in both directions for a while.
func (k *Link) Delay(ctx context.Context, d time.Duration, millis int) {
	late := time.Duration(millis) * time.Millisecond
	k.injectFaults(ctx, d, relay.Faults{Latency: late, Jitter: late / 2}, relay.FromClient, relay.FromServer)
}

// HalfOpen loses all bytes of one direction, "upstream" or "downstream", while
// the connection stays open, as after the silent loss of a peer or a firewall's
// entry. At the end the connections that lost bytes close.
func (k *Link) HalfOpen(ctx context.Context, d time.Duration, direction string) {
	lost := relay.FromClient
	if direction == "downstream" {
		lost = relay.FromServer
	}
	k.injectFaults(ctx, d, relay.Faults{BlackHole: true}, lost)
}

func (k *Link) injectFaults(ctx context.Context, d time.Duration, f relay.Faults, directions ...relay.Direction) {
	for _, direction := range directions {
		k.relay.Disturb(direction, f)
	}
	testenv.Pause(ctx, d)
	for _, direction := range directions {
		k.relay.Disturb(direction, relay.Faults{})
	}
}
