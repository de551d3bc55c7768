package topic

import (
	"context"
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// describingBroker tells one state of a transaction after another, the last one for ever.
type describingBroker struct {
	states []string
	code   int16
	asked  int
}

func (b *describingBroker) Request(_ context.Context, _ kmsg.Request) (kmsg.Response, error) {
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
	never := &describingBroker{states: []string{"PrepareCommit"}}
	if waited, err := AwaitMarkers(t.Context(), never, "x"); !waited || err != nil {
		t.Errorf("a transaction that is never finished: waited %t, error %v", waited, err)
	}
}
