// Package network puts proxies between a daemon and its servers. They cut,
// delay and silence connections and swallow single answers.
package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"dinnerbell/internal/testenv"
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

// Links is one daemon's network. Every connection passes a toxic proxy. Where
// an answer can be swallowed, a relay that knows the protocol stands behind the
// proxy:
//
//	source.url ─ splitter ─┬─ toxic replication ─────────────── Postgres
//	                       └─ toxic sql ─────────────────────── Postgres
//	sink.url ───────────────── toxic sink ── relay (COMMIT) ─── Postgres
//	kafka.brokers ──────────── toxic kafka ─ relay (EndTxn) ─── broker
//
// The daemon has one source.url; the splitter separates replication from other
// connections by the startup packet.
type Links struct {
	Proxies                map[string]*Link
	splitter               *tcpRelay
	sink, kafka            *tcpRelay
	CommitTrap, EndTxnTrap answerTrap
}

// Link is a toxic proxy. The fault that works on the link holds Busy.
type Link struct {
	Busy  sync.Mutex
	proxy *toxiproxy.Proxy
}

// NewLinks starts the network between a daemon and the two servers (host:port).
func NewLinks(postgres, broker string) (l *Links, err error) {
	l = &Links{Proxies: map[string]*Link{}}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	l.sink = &tcpRelay{route: fixedRoute(postgres), pumps: func() (pumpFunc, pumpFunc) { return copyBytes, loseCommit(&l.CommitTrap) }}
	if err := l.sink.listenOnFreePort(); err != nil {
		return nil, err
	}
	kafkaPort, err := testenv.FreePort()
	if err != nil {
		return nil, err
	}
	l.kafka = &tcpRelay{route: fixedRoute(broker), pumps: func() (pumpFunc, pumpFunc) {
		wire := newKafkaWire(kafkaPort, &l.EndTxnTrap)
		return wire.passRequests, wire.passResponses
	}}
	if err := l.kafka.listenOnFreePort(); err != nil {
		return nil, err
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	for _, name := range Names {
		listen, upstream := "127.0.0.1:0", postgres
		switch name {
		case Sink:
			upstream = l.sink.listenAddress()
		case Kafka:
			listen, upstream = testenv.Loopback(kafkaPort), l.kafka.listenAddress()
		}
		if listen == "127.0.0.1:0" {
			port, err := testenv.FreePort()
			if err != nil {
				return nil, err
			}
			listen = testenv.Loopback(port)
		}
		p := toxiproxy.NewProxy(server, name, listen, upstream)
		if err := p.Start(); err != nil {
			return nil, fmt.Errorf("start proxy %s: %w", name, err)
		}
		l.Proxies[name] = &Link{proxy: p}
	}
	l.splitter = &tcpRelay{route: l.splitByStartup}
	return l, l.splitter.listenOnFreePort()
}

// splitByStartup routes replication connections to one proxy and all others to
// the other.
func (l *Links) splitByStartup(client *bufio.Reader) (string, []byte, error) {
	packet, replication, err := readStartup(client)
	if err != nil {
		return "", nil, err
	}
	if replication {
		return l.Proxies[Replication].proxy.Listen, packet, nil
	}
	return l.Proxies[SQL].proxy.Listen, packet, nil
}

// Close ends all connections and proxies.
func (l *Links) Close() {
	for _, t := range l.Proxies {
		t.proxy.Stop()
	}
	for _, r := range []*tcpRelay{l.splitter, l.sink, l.kafka} {
		if r != nil && r.ln != nil {
			r.closeAll()
		}
	}
}

// SourceURL replaces the address in a Postgres URL by the splitter's.
func (l *Links) SourceURL(direct string) (string, error) {
	return replaceHost(direct, l.splitter.listenAddress())
}

// SinkURL replaces the address in a Postgres URL by the sink link's.
func (l *Links) SinkURL(direct string) (string, error) {
	return replaceHost(direct, l.Proxies[Sink].proxy.Listen)
}

// Broker is the address of the Kafka link.
func (l *Links) Broker() string { return l.Proxies[Kafka].proxy.Listen }

func replaceHost(direct, address string) (string, error) {
	u, err := url.Parse(direct)
	if err != nil {
		return "", fmt.Errorf("parse URL: %w", err)
	}
	u.Host = address
	return u.String(), nil
}

// Cut closes the link's connections and refuses new ones for a while.
func (k *Link) Cut(ctx context.Context, d time.Duration) error {
	k.proxy.Stop()
	testenv.Pause(ctx, d)
	return k.listenAgain()
}

// listenAgain binds the proxy's port again. Another process rarely takes the
// port in between.
func (k *Link) listenAgain() error {
	err := k.proxy.Start()
	if err != nil && !errors.Is(err, toxiproxy.ErrProxyAlreadyStarted) {
		return fmt.Errorf("start proxy %s: %w", k.proxy.Name, err)
	}
	return nil
}

// Delay adds latency in both directions for a while.
func (k *Link) Delay(ctx context.Context, d time.Duration, millis int) error {
	const spec = `{"name":"%s","type":"latency","stream":"%s","attributes":{"latency":%d,"jitter":%d}}`
	for _, direction := range []string{"upstream", "downstream"} {
		if _, err := k.proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(spec, direction, direction, millis, millis/2))); err != nil {
			return fmt.Errorf("delay %s: %w", k.proxy.Name, err)
		}
	}
	testenv.Pause(ctx, d)
	return k.removeToxics()
}

// HalfOpen loses all bytes of one direction while the connection stays open, as
// after the silent loss of a peer or a firewall's entry. At the end the
// connections close.
func (k *Link) HalfOpen(ctx context.Context, d time.Duration, direction string) error {
	const spec = `{"name":"gone","type":"timeout","stream":"%s","attributes":{"timeout":0}}`
	if _, err := k.proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(spec, direction))); err != nil {
		return fmt.Errorf("half-open %s: %w", k.proxy.Name, err)
	}
	testenv.Pause(ctx, d)
	return k.removeToxics()
}

// removeToxics removes the toxics. The library can wait forever for a link that
// ends in the same moment; closing every connection wakes it up.
func (k *Link) removeToxics() error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.proxy.Toxics.ResetToxics(context.Background())
	}()
	for range 5 {
		select {
		case <-done:
			return nil
		case <-time.After(time.Second):
			k.proxy.Stop()
			if err := k.listenAgain(); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("remove toxics of proxy %s: the library does not return", k.proxy.Name)
}
