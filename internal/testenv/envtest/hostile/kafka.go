package hostile

import (
	"encoding/binary"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Broker starts a broker that answers requests of one kind with a body, whatever its
// version. It returns the addresses.
func Broker(t testing.TB, kind kmsg.Key, body []byte) []string {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	cluster.ControlKey(kind.Int16(), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		return rawResponse{req.ResponseKind(), body}, nil, true
	})
	return cluster.ListenAddrs()
}

// rawResponse is a response with a body of its own.
type rawResponse struct {
	kmsg.Response

	body []byte
}

// AppendTo implements kmsg.Response.
func (r rawResponse) AppendTo(b []byte) []byte { return append(b, r.body...) }

// ManyBrokers is the body of a metadata response that claims a broker for each of its n
// bytes.
func ManyBrokers(n int) []byte {
	return append(binary.AppendUvarint(make([]byte, 4), uint64(n)), make([]byte, n)...)
}
