package daemon

import (
	"log/slog"
	"net"
	"strings"
	"testing"
)

// A page that all addresses serve is warned of, one of loopback is not.
func TestOpenPageIsWarnedOf(t *testing.T) {
	t.Parallel()
	for address, open := range map[string]bool{"0.0.0.0:80": true, "[::]:80": true, "127.0.0.1:80": false, "[::1]:80": false, "10.1.2.3:80": false} {
		at, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		warnOfOpenPage(slog.New(slog.NewTextHandler(&out, nil)), at)
		if warned := strings.Contains(out.String(), "level=WARN"); warned != open {
			t.Errorf("%s: warned %t: %s", address, warned, out.String())
		}
	}
}
