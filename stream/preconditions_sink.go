package stream

import (
	"context"
	"slices"

	"dinnerbell/internal/precondition"
)

// sinkPreconditions are those of the Postgres sink. The unique index comes behind
// what keeps setup from making it.
var sinkPreconditions = slices.Concat([]precondition.Check[*facts]{
	{Name: "sink.layout", At: precondition.AtStart | precondition.AtSession, Read: readLayout},
}, feedbackPreconditions, []precondition.Check[*facts]{
	{Name: "sink.feedback.unique_index", At: precondition.AtStart | precondition.AtSession, Read: readUniqueIndex},
})

// readLayout looks for the daemon's own tables, in the layout that this program
// works on.
func readLayout(ctx context.Context, f *facts) ([]precondition.Finding, error) {
	return nil, checkLayout(ctx, f.conn, f.t)
}

// readUniqueIndex looks for the constraint that makes "exactly one row" true.
func readUniqueIndex(ctx context.Context, f *facts) ([]precondition.Finding, error) {
	index, err := uniqueIndex(ctx, f.conn, f.t)
	if err != nil || index != "" || !f.catalogue.exists {
		return nil, err
	}
	return []precondition.Finding{{Level: precondition.Fail, Object: "feedback table " + f.t.feedback,
		Found:  "it has no valid unique index on (adv_campaign_id, client_id)",
		Effect: "nothing would keep a client from being notified twice",
		Fix:    "dinnerbell setup"}}, nil
}
