package e2e

import (
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/testenv/envtest"
)

// SIGTERM ends the daemon at once even while a broker, which has not proved
// that it knows the password, asks for hours of work.
func TestBrokerThatAsksForHoursOfWork(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-256", "me", "pass"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	var asked atomic.Int64
	broker.ControlKey(int16(kmsg.SASLAuthenticate), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		broker.KeepControl()
		req, ok := kreq.(*kmsg.SASLAuthenticateRequest)
		if !ok {
			return nil, nil, false //nolint:nilnil // kfake answers itself
		}
		_, nonce, _ := strings.Cut(string(req.SASLAuthBytes), "r=")
		resp := kmsg.NewPtrSASLAuthenticateResponse()
		resp.Version, resp.SASLAuthBytes = req.Version, []byte("r="+nonce+"more,s=c2FsdA==,i=2147483647")
		asked.Add(1)
		return resp, nil, true
	})
	d.setConfig("kafka", map[string]any{"brokers": broker.ListenAddrs(), "sasl": map[string]any{"mechanism": "SCRAM-SHA-256", "username": "me", "password": "pass"}})
	d.start()
	envtest.Until(t, patience, func() error {
		if text := d.log.tail(16 << 10); !strings.Contains(text, `asks for \"2147483647\" iterations`) {
			return fmt.Errorf("asked %d times; log: %s", asked.Load(), text)
		}
		return nil
	})
	began := time.Now()
	if err := d.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if <-d.process.Done(); d.process.Err() != nil {
		t.Errorf("the daemon ended with %v", d.process.Err())
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the daemon ended %s after SIGTERM", took)
	}
	d.process = nil
}
