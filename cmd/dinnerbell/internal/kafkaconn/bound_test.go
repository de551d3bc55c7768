package kafkaconn

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Only the answer to a request for records may be large, in the order of the requests.
func TestLargeAnswersHoldRecords(t *testing.T) {
	t.Parallel()
	const large = 3 << 20
	for want, kinds := range map[string][]kmsg.Key{
		"": {kmsg.ApiVersions, kmsg.Metadata, kmsg.Fetch}, "request for no records": {kmsg.ApiVersions, kmsg.Fetch, kmsg.Metadata},
	} {
		client, server := net.Pipe()
		dial := boundAnswers(func(context.Context, string, string) (net.Conn, error) { return client, nil }, 1)
		conn, err := dial(t.Context(), "tcp", "h")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			request := make([]byte, 16)
			for range kinds {
				if _, err := io.ReadFull(server, request); err != nil {
					t.Error(err)
				}
			}
			for _, size := range []int{100, 100, large} {
				if _, err := server.Write(append(binary.BigEndian.AppendUint32(nil, uint32(size)), make([]byte, size)...)); err != nil {
					return // the client has left
				}
			}
			_ = server.Close()
		}()
		for _, kind := range kinds {
			request := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint32(nil, 12), uint16(kind.Int16()))
			if _, err := conn.Write(append(request, make([]byte, 10)...)); err != nil {
				t.Fatal(err)
			}
		}
		switch got, err := io.ReadAll(conn); {
		case want == "" && (err != nil || len(got) != large+212):
			t.Errorf("%v: %d bytes, %v", kinds, len(got), err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%v: %v, want an error with %q", kinds, err, want)
		}
		_ = conn.Close()
	}
}

// The end of the context ends a connection that the broker has not accepted yet, and no
// other.
func TestContextEndsAnUnacceptedConnection(t *testing.T) {
	t.Parallel()
	for _, accepted := range []bool{false, true} {
		client, server := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		conn, err := boundAnswers(func(context.Context, string, string) (net.Conn, error) { return client, nil }, 1)(ctx, "tcp", "h")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if accepted {
				_, _ = server.Write([]byte{0, 0, 0, 4, 1, 2, 3, 4})
			}
		}()
		if accepted {
			if _, err := io.ReadFull(conn, make([]byte, 8)); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		if !accepted {
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				t.Error("read without an error")
			}
		} else {
			go func() { _, _ = server.Write([]byte{0, 0, 0, 1, 7}) }()
			if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
				t.Errorf("the connection has ended: %v", err)
			}
		}
		_, _ = conn.Close(), server.Close()
	}
}
