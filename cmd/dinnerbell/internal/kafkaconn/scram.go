package kafkaconn

import (
	"bytes"
	"context"
	"fmt"
	"strconv"

	"github.com/twmb/franz-go/pkg/sasl"
)

// maxIterations is the most work that a broker may ask for before it has proved
// that it knows the password. Kafka stores 16,384 iterations at most; maxIterations
// take a tenth of a second.
const maxIterations = 100_000

// boundedScram refuses a challenge that asks for more than maxIterations. The
// client would compute them without looking at its context, and the process could
// not end meanwhile.
type boundedScram struct{ sasl.Mechanism }

// Authenticate implements sasl.Mechanism.
func (m boundedScram) Authenticate(ctx context.Context, host string) (sasl.Session, []byte, error) {
	session, first, err := m.Mechanism.Authenticate(ctx, host)
	return boundedScramSession{session, m.Name(), host}, first, err
}

type boundedScramSession struct {
	sasl.Session
	mechanism, host string
}

// Challenge implements sasl.Session.
func (s boundedScramSession) Challenge(from []byte) (bool, []byte, error) {
	for field := range bytes.SplitSeq(from, []byte(",")) {
		text, ok := bytes.CutPrefix(field, []byte("i="))
		if !ok {
			continue
		}
		if n, err := strconv.Atoi(string(text)); err != nil || n > maxIterations {
			return false, nil, fmt.Errorf("broker %s asks for %.20q iterations of %s, more than the %d that are done for it: is it the broker that you mean?", s.host, text, s.mechanism, maxIterations)
		}
	}
	return s.Session.Challenge(from)
}
