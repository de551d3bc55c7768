package stream

import (
	"fmt"
	"testing"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/operator"
)

// A campaign that is joined once more, behind a resume or since the local state was lost,
// leaves out the clients whom it has notified itself. It does not count them: those of
// another restaurant alone had the campaign already. Its audience is never smaller than
// the number of clients who got it, although some of these have left since.
func TestJoiningAgainDoesNotCountItsOwnClients(t *testing.T) {
	t.Parallel()
	first := clients("0000", 10)
	w := newLateDeployment(t, 1, map[string][]string{"r1": first, "r2": first[:2]})
	svc, stop := w.start()
	w.insert("r1", "leaves", "goes")
	w.produce(0, encodeCampaign(w.campaign("c", "r2")), encodeCampaign(w.campaign("d", "r2")))
	w.finished("c", "d")
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	w.awaitFinished("c", "r1", 10)
	w.remove("r1", "leaves", "goes")
	w.insert("r1", "late")
	w.awaitFinished("c", "r1", 11)
	w.handled(svc)
	w.wantCounts("c", "r1", storedCounts{State: "finished", Audience: -1, Notified: 11, Already: 2})

	w.operate(operator.Pause, "c", "r1", 1)
	w.operate(operator.Resume, "c", "r1", 1)
	w.awaitFinished("c", "r1", 11)
	again := storedCounts{State: "finished", Audience: 13, Notified: 11, Already: 2, Started: true, Finished: true}
	w.wantCounts("c", "r1", again)
	w.insert("r1", "later")
	w.awaitFinished("c", "r1", 12)
	again.Audience, again.Notified = 14, 12
	w.wantCounts("c", "r1", again)
	stop()

	w.db.Exec(`UPDATE dinnerbell.lane SET source_id = 'another'`) // as if the local state were lost
	svc, _ = w.start()
	w.handled(svc)
	w.awaitFinished("c", "r1", 12)
	w.awaitFinished("d", "r2", 2)
	w.wantCounts("c", "r1", again)
	w.wantCounts("d", "r2", storedCounts{State: "finished", Audience: 2, Notified: 2, Started: true, Finished: true})
}

// awaitFinished waits until a campaign's row is finished and has notified so many.
func (w *deployment) awaitFinished(id, restaurant string, notified int64) {
	w.Helper()
	envtest.Until(w, patience, func() error {
		if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = $1 AND restaurant_id = $2 AND state = 'finished' AND notified = $3`, id, restaurant, notified); n != 1 {
			return fmt.Errorf("campaign %s of %s is not finished with %d notified clients", id, restaurant, notified)
		}
		return nil
	})
}
