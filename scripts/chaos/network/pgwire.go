package network

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// maxStartup bounds a startup packet, as Postgres does.
const maxStartup = 10000

// readStartup reads the first packet of a Postgres connection and reports
// whether the client asks for replication. The URLs have sslmode=disable, so no
// TLS negotiation comes first. A cancel request has the same form.
// https://www.postgresql.org/docs/current/protocol-message-formats.html
func readStartup(in *bufio.Reader) (packet []byte, replication bool, err error) {
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

// loseCommit relays the server's messages one by one. When the trap is armed,
// it swallows the answer to COMMIT: the transaction is committed, and the
// client cannot know.
func loseCommit(t *answerTrap) pumpFunc {
	return func(in *bufio.Reader, out *bufio.Writer) error {
		for {
			head, err := in.Peek(5)
			if err != nil {
				return err
			}
			size := 1 + int64(binary.BigEndian.Uint32(head[1:]))
			if size < 5 {
				return fmt.Errorf("read message %q of %d bytes", head[0], size)
			}
			if head[0] == 'C' && size == int64(len("C\x00\x00\x00\x00COMMIT\x00")) {
				whole, err := in.Peek(int(size))
				if err != nil {
					return err
				}
				if string(whole[5:]) == "COMMIT\x00" && t.loseNext() {
					return errCut
				}
			}
			if _, err := io.CopyN(out, in, size); err != nil {
				return err
			}
			if err := flushIdle(in, out); err != nil {
				return err
			}
		}
	}
}
