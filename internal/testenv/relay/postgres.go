package relay

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/url"
)

// maxStartup bounds a startup packet, as Postgres does.
const maxStartup = 10000

// ReadStartup reads the first packet of a Postgres connection and reports
// whether the client asks for replication. The URLs have sslmode=disable, so no
// TLS negotiation comes first. A cancel request has the same form.
// https://www.postgresql.org/docs/current/protocol-message-formats.html
func ReadStartup(in *bufio.Reader) (packet []byte, replication bool, err error) {
	var length [4]byte
	if _, err := io.ReadFull(in, length[:]); err != nil {
		return nil, false, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n < 8 || n > maxStartup {
		return nil, false, fmt.Errorf("read startup packet: %d bytes", n)
	}
	packet = make([]byte, n)
	copy(packet, length[:])
	if _, err := io.ReadFull(in, packet[4:]); err != nil {
		return nil, false, err
	}
	// After length and protocol version come pairs: name NUL value NUL.
	parts := bytes.Split(packet[8:], []byte{0})
	for i := 0; i+1 < len(parts); i += 2 {
		if string(parts[i]) == "replication" {
			replication = string(parts[i+1]) != "false"
		}
	}
	return packet, replication, nil
}

// ReplaceHost replaces host and port of a URL by the relay's.
func (r *Relay) ReplaceHost(direct string) (string, error) {
	u, err := url.Parse(direct)
	if err != nil {
		return "", fmt.Errorf("parse URL: %w", err)
	}
	u.Host = r.Address()
	return u.String(), nil
}
