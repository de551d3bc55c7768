package topic

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// markerPoll is the time between the first two looks at a transaction that is being
	// ended. The time between two looks grows by markerPoll each time.
	markerPoll = time.Millisecond
	// markerPatience is the time after which AwaitMarkers looks no more.
	markerPatience = 50 * time.Millisecond
	// markerAnswer bounds the wait for answers. It is much longer than markerPatience: the
	// client closes the connection of a request that is cancelled, and a broker that is far
	// away would have its connection opened again for every transaction.
	markerAnswer = time.Second
)

// AwaitMarkers waits until the broker has written the markers of the transaction that a
// producer has ended, for markerPatience and one answer at most. EndTxn is answered before
// that, and a broker that gets the first records of the next transaction too early lets them
// wait for 20 ms (add.partitions.to.txn.retry.backoff.ms). Nothing but time depends on
// AwaitMarkers. waited is false if the markers were there at the first look. An error
// means that the broker does not tell; the end of ctx is none.
func AwaitMarkers(ctx context.Context, client kmsg.Requestor, transactionalID string) (waited bool, err error) {
	bounded, cancel := context.WithTimeout(ctx, markerAnswer)
	defer cancel()
	req := kmsg.NewPtrDescribeTransactionsRequest()
	req.TransactionalIDs = []string{transactionalID}
	began := time.Now()
	for pause := markerPoll; ; pause += markerPoll {
		ending, err := isEnding(bounded, client, req)
		switch {
		case ctx.Err() != nil:
			return waited, nil // nobody waits any more
		case err != nil:
			return waited, fmt.Errorf("describe transaction: %w", err)
		case !ending:
			return waited, nil
		case time.Since(began)+pause > markerPatience:
			return true, nil
		}
		waited = true
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return waited, nil
		}
	}
}

// isEnding reports whether the markers of a transaction are being written.
func isEnding(ctx context.Context, client kmsg.Requestor, req *kmsg.DescribeTransactionsRequest) (bool, error) {
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return false, err
	}
	if len(resp.TransactionStates) != 1 {
		return false, errors.New("the answer does not name the transaction")
	}
	state := &resp.TransactionStates[0]
	return state.State == "PrepareCommit" || state.State == "PrepareAbort", kerr.ErrorForCode(state.ErrorCode)
}
