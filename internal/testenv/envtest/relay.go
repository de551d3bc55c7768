package envtest

import (
	"bufio"
	"net/url"
	"testing"

	"dinnerbell/internal/testenv/relay"
)

// Relay passes TCP connections on to a Postgres and can disturb them; see
// [relay.Relay].
type Relay struct {
	*relay.Relay

	test testing.TB
}

// RelayPostgres relays to the server in db's URL until the test ends. With
// replicationOnly, other connections are not disturbed.
func RelayPostgres(t testing.TB, db *DB, replicationOnly bool) *Relay {
	t.Helper()
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	r, err := relay.StartRelay(relay.Options{Route: func(client *bufio.Reader) (relay.Route, error) {
		startup, replication, err := relay.ReadStartup(client)
		return relay.Route{Upstream: u.Host, Head: startup, Exempt: replicationOnly && !replication}, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return &Relay{Relay: r, test: t}
}

// URL replaces the address in a connection string by the relay's.
func (r *Relay) URL(direct string) string {
	r.test.Helper()
	through, err := r.ReplaceHost(direct)
	if err != nil {
		r.test.Fatal(err)
	}
	return through
}

// Pause holds the server's bytes back.
func (r *Relay) Pause() { r.Disturb(relay.FromServer, relay.Faults{Hold: true}) }

// Mute loses the bytes of both directions and closes nothing, as a network that
// has gone does.
func (r *Relay) Mute() {
	r.Disturb(relay.FromClient, relay.Faults{BlackHole: true})
	r.Disturb(relay.FromServer, relay.Faults{BlackHole: true})
}

// Resume ends both: held bytes follow, and connections that lost bytes close.
func (r *Relay) Resume() {
	r.Disturb(relay.FromClient, relay.Faults{})
	r.Disturb(relay.FromServer, relay.Faults{})
}
