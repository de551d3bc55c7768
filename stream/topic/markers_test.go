package topic

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// describingBroker tells one state of a transaction after another, the last one for ever.
type describingBroker struct {
	states []string
	code   int16
	delay  time.Duration // before each answer
	asked  int
}

func (b *describingBroker) Request(ctx context.Context, _ kmsg.Request) (kmsg.Response, error) {
	if b.delay > 0 {
		select {
		case <-time.After(b.delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	state := kmsg.NewDescribeTransactionsResponseTransactionState()
	state.ErrorCode, state.State = b.code, b.states[min(b.asked, len(b.states)-1)]
	b.asked++
	resp := kmsg.NewPtrDescribeTransactionsResponse()
	resp.TransactionStates = append(resp.TransactionStates, state)
	return resp, nil
}

func TestAwaitMarkers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		broker describingBroker
		waited bool
		asked  int
		err    error
	}{
		{"finished before", describingBroker{states: []string{"CompleteCommit"}}, false, 1, nil},
		{"finished later", describingBroker{states: []string{"PrepareCommit", "PrepareCommit", "CompleteCommit"}}, true, 3, nil},
		{"aborted later", describingBroker{states: []string{"PrepareAbort", "CompleteAbort"}}, true, 2, nil},
		{"the next one has begun", describingBroker{states: []string{"Ongoing"}}, false, 1, nil},
		{"denied", describingBroker{states: []string{""}, code: kerr.TransactionalIDAuthorizationFailed.Code}, false, 1, kerr.TransactionalIDAuthorizationFailed},
	} {
		waited, err := AwaitMarkers(t.Context(), &c.broker, "x")
		if waited != c.waited || c.broker.asked != c.asked || !errors.Is(err, c.err) {
			t.Errorf("%s: waited %t, asked %d times, error %v; want %t, %d, %v", c.name, waited, c.broker.asked, err, c.waited, c.asked, c.err)
		}
	}
}

// AwaitMarkers gives up after its patience, but cancels no request before the answer had
// its time: the client closes the connection of a cancelled request, which EndTxn and the
// next one would have to open again.
func TestAwaitMarkersOfASlowBroker(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		broker  describingBroker
		waited  bool
		atLeast time.Duration
		most    time.Duration
		err     error
	}{
		{"never finished", describingBroker{states: []string{"PrepareCommit"}}, true, markerPatience / 2, markerPatience, nil},
		{"never finished, and slow", describingBroker{states: []string{"PrepareCommit"}, delay: 30 * time.Millisecond}, true, markerPatience / 2, 2 * markerPatience, nil},
		{"finished, and far away", describingBroker{states: []string{"CompleteCommit"}, delay: 2 * markerPatience}, false, 2 * markerPatience, 2 * markerPatience, nil},
		{"no answer", describingBroker{states: []string{"CompleteCommit"}, delay: time.Hour}, false, markerAnswer, markerAnswer, context.DeadlineExceeded},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			waited, err := AwaitMarkers(t.Context(), &c.broker, "x")
			took := time.Since(began)
			if waited != c.waited || !errors.Is(err, c.err) || took < c.atLeast || took > c.most {
				t.Errorf("%s: waited %t, error %v after %s; want %t, %v after %s to %s", c.name, waited, err, took, c.waited, c.err, c.atLeast, c.most)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), markerPoll)
		defer cancel()
		slow := &describingBroker{states: []string{"CompleteCommit"}, delay: time.Hour}
		if _, err := AwaitMarkers(ctx, slow, "x"); err != nil {
			t.Errorf("the session's end is reported as an answer of the broker: %v", err)
		}
	})
}
