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
	// markerPatience bounds AwaitMarkers.
	markerPatience = 50 * time.Millisecond
)

// AwaitMarkers waits until the broker has written the markers of the transaction that a
// producer has ended, for markerPatience at most. EndTxn is answered before that, and a
// broker that gets the first records of the next transaction too early lets them wait for
// 20 ms (add.partitions.to.txn.retry.backoff.ms). Nothing but time depends on
// AwaitMarkers. waited is false if the markers were there at the first look. An error
// means that the broker does not tell.
func AwaitMarkers(ctx context.Context, client kmsg.Requestor, transactionalID string) (waited bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, markerPatience)
	defer cancel()
	req := kmsg.NewPtrDescribeTransactionsRequest()
	req.TransactionalIDs = []string{transactionalID}
	for pause := markerPoll; ; pause += markerPoll {
		ending, err := isEnding(ctx, client, req)
		switch {
		case ctx.Err() != nil:
			return true, nil // the time is over
		case err != nil:
			return waited, fmt.Errorf("describe transaction: %w", err)
		case !ending:
			return waited, nil
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
