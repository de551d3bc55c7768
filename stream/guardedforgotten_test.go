package stream

import (
	"testing"

	"dinnerbell/state/id"
	"dinnerbell/stream/sink"
)

// What a try of a step has found about a campaign does not outlive the try: if the table
// takes the rows in the next one, the campaign goes on behind them.
func TestRefusalOfAFailedTryIsForgotten(t *testing.T) {
	t.Parallel()
	st := newStep(&sink.FeedbackTable{})
	l := newLive("c1")
	st.noteProgress(l, sink.StatePending)
	st.picks = []*clientPick{{live: l, clients: &id.List{}}}
	st.noteRefused(st.picks[0], "the table is against it")
	if rows := st.rows[l.Key()]; rows.state != sink.StateFinished || rows.refusal == "" {
		t.Fatalf("state %q, refusal %q", rows.state, rows.refusal)
	}
	st.forgetRefused()
	if r := st.rows[l.Key()]; r.state != sink.StatePending || r.refusal != "" || len(st.refused) > 0 {
		t.Errorf("after the failed try: state %q, refusal %q, %d refused campaigns", r.state, r.refusal, len(st.refused))
	}
}
