package network

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/testenv/relay"
)

// The API keys of Kafka requests that a relay treats in a special way.
const (
	keyProduce         = 0
	keyFetch           = 1
	keyMetadata        = 3
	keyFindCoordinator = 10
	keyEndTxn          = 26
)

// maxFrame is Kafka's default of socket.request.max.bytes.
const maxFrame = 100 << 20

// kafkaWire relays one broker connection and matches responses with requests.
// It replaces the address that the broker advertises by the proxy's address, so
// that no broker needs settings for the proxy and each daemon has a proxy of
// its own. When the trap is armed, it swallows the answer to EndTxn.
type kafkaWire struct {
	port int32 // the proxy's port on 127.0.0.1, shown as the broker's
	trap *answerTrap

	mu      sync.Mutex // guards pending
	pending map[int32]apiRequest
}

type apiRequest struct{ key, version int16 }

func newKafkaWire(port int, t *answerTrap) *kafkaWire {
	return &kafkaWire{port: int32(port), trap: t, pending: map[int32]apiRequest{}}
}

// passRequests relays requests and records their kinds. A request begins with
// size, API key, version and correlation id.
// https://kafka.apache.org/protocol#protocol_messages
func (k *kafkaWire) passRequests(in *bufio.Reader, out *bufio.Writer) error {
	for {
		head, err := in.Peek(12)
		if err != nil {
			return err
		}
		size := int64(binary.BigEndian.Uint32(head))
		if size < 8 || size > maxFrame {
			return fmt.Errorf("read Kafka request of %d bytes", size)
		}
		r := apiRequest{key: int16(binary.BigEndian.Uint16(head[4:])), version: int16(binary.BigEndian.Uint16(head[6:]))}
		k.mu.Lock()
		k.pending[int32(binary.BigEndian.Uint32(head[8:]))] = r
		k.mu.Unlock()
		if _, err := io.CopyN(out, in, 4+size); err != nil {
			return err
		}
		if err := relay.FlushIdle(in, out); err != nil {
			return err
		}
	}
}

// passResponses relays responses, which begin with size and correlation id.
func (k *kafkaWire) passResponses(in *bufio.Reader, out *bufio.Writer) error {
	for {
		head, err := in.Peek(8)
		if err != nil {
			return err
		}
		size := int64(binary.BigEndian.Uint32(head))
		if size < 4 || size > maxFrame {
			return fmt.Errorf("read Kafka response of %d bytes", size)
		}
		id := int32(binary.BigEndian.Uint32(head[4:]))
		k.mu.Lock()
		r := k.pending[id]
		delete(k.pending, id)
		k.mu.Unlock()
		switch r.key {
		case keyEndTxn:
			if k.trap.loseNext() {
				return errCut
			}
			_, err = io.CopyN(out, in, 4+size)
		case keyMetadata, keyFindCoordinator, keyProduce, keyFetch:
			frame := make([]byte, 4+size)
			if _, err = io.ReadFull(in, frame); err == nil {
				_, err = out.Write(k.replaceAddresses(frame, r))
			}
		default:
			_, err = io.CopyN(out, in, 4+size)
		}
		if err != nil {
			return err
		}
		if err := relay.FlushIdle(in, out); err != nil {
			return err
		}
	}
}

// replaceAddresses puts the proxy's address into a response that names brokers.
// A response that names no broker or cannot be read stays as it is.
func (k *kafkaWire) replaceAddresses(frame []byte, r apiRequest) []byte {
	resp := kmsg.ResponseForKey(r.key)
	resp.SetVersion(r.version)
	body := kbin.Reader{Src: frame[8:]}
	if resp.IsFlexible() {
		if n := body.Uvarint(); n != 0 { // tags in the header: Kafka defines none
			return frame
		}
	}
	if !body.Ok() || resp.ReadFrom(body.Src) != nil || !k.replaceIn(resp) {
		return frame
	}
	out := append(make([]byte, 4, len(frame)+64), frame[4:8]...)
	if resp.IsFlexible() {
		out = append(out, 0)
	}
	out = resp.AppendTo(out)
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out
}

// replaceIn replaces the addresses in a response and reports whether there were
// any.
func (k *kafkaWire) replaceIn(resp kmsg.Response) bool {
	moved := false
	at := func(host *string, port *int32) {
		if *port > 0 {
			*host, *port, moved = "127.0.0.1", k.port, true
		}
	}
	switch m := resp.(type) {
	case *kmsg.MetadataResponse:
		for i := range m.Brokers {
			at(&m.Brokers[i].Host, &m.Brokers[i].Port)
		}
	case *kmsg.FindCoordinatorResponse:
		at(&m.Host, &m.Port)
		for i := range m.Coordinators {
			at(&m.Coordinators[i].Host, &m.Coordinators[i].Port)
		}
	case *kmsg.ProduceResponse: // since version 10: the new leaders
		for i := range m.Brokers {
			at(&m.Brokers[i].Host, &m.Brokers[i].Port)
		}
	case *kmsg.FetchResponse:
		for i := range m.Brokers {
			at(&m.Brokers[i].Host, &m.Brokers[i].Port)
		}
	}
	return moved
}
