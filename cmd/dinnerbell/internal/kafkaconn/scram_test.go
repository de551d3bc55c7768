package kafkaconn

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// A broker that has shown nothing yet cannot have this process work for hours.
func TestScramIterationsAreBounded(t *testing.T) {
	t.Parallel()
	for iterations, refused := range map[string]bool{"4096": false, "16384": false, "2147483647": true, "99999999999999999999": true} {
		m := boundedScram{scram.Sha256(func(context.Context) (scram.Auth, error) { return scram.Auth{User: "u", Pass: "p"}, nil })}
		session, first, err := m.Authenticate(t.Context(), "broker:9092")
		if err != nil {
			t.Fatal(err)
		}
		_, nonce, _ := strings.Cut(string(first), "r=")
		began := time.Now()
		_, _, err = session.Challenge([]byte("r=" + nonce + "more,s=c2FsdA==,i=" + iterations))
		if (err != nil) != refused || refused && !strings.Contains(err.Error(), "broker:9092") {
			t.Errorf("%s iterations: %v", iterations, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s iterations took %s", iterations, took)
		}
	}
}
