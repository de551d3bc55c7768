package topic

import (
	"context"
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// silentBroker gives no answer and keeps the request, as the client does: it may write
// the version into the request later.
type silentBroker struct{ got []kmsg.Request }

func (b *silentBroker) Request(_ context.Context, req kmsg.Request) (kmsg.Response, error) {
	b.got = append(b.got, req)
	return nil, errors.New("no answer in time")
}

// answeringBroker answers with an error code.
type answeringBroker struct {
	silentBroker
	code int16
}

func (b *answeringBroker) Request(_ context.Context, req kmsg.Request) (kmsg.Response, error) {
	b.got = append(b.got, req)
	resp := kmsg.NewPtrFindCoordinatorResponse()
	resp.ErrorCode = b.code
	return resp, nil
}

// Each broker that is asked for a coordinator gets a request of its own, which it may
// still write into while the next broker is asked. Behind an answer no broker is asked.
func TestFindAsksEachBrokerWithItsOwnRequest(t *testing.T) {
	t.Parallel()
	silent, answers, last := &silentBroker{}, &answeringBroker{code: kerr.CoordinatorNotAvailable.Code}, &silentBroker{}
	err := TransactionCoordinator("x").findAt(t.Context(), []requester{silent, answers, last})
	if !errors.Is(err, kerr.CoordinatorNotAvailable) {
		t.Errorf("error %v, want that of the broker that answers", err)
	}
	if len(silent.got) != 1 || len(answers.got) != 1 || len(last.got) != 0 {
		t.Fatalf("requests: %d, %d, %d, want one to each of the first two brokers", len(silent.got), len(answers.got), len(last.got))
	}
	if silent.got[0] == answers.got[0] {
		t.Error("two brokers share one request: the first one may write into it while the second one reads it")
	}
}
