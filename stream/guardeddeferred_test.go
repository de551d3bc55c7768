package stream

import (
	"fmt"
	"slices"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// A deferred constraint that refuses a client of a new campaign, in a step beside a guarded
// campaign, ends no session.
func TestDeferredConstraintBesideAGuardedCampaign(t *testing.T) {
	t.Parallel()
	large, few := clients("0000", 4000), clients("0001", 3)
	w := feedbackWorld(t, map[string][]string{"r1": large, "few": few},
		`CREATE TABLE users (id text PRIMARY KEY)`,
		feedbackDDL(`, FOREIGN KEY (client_id) REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED`))
	known := slices.Concat(slices.Delete(slices.Clone(large), 100, 101), few[1:])
	w.db.Exec(`INSERT INTO users SELECT unnest($1::text[])`, known)
	w.db.Exec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END'`)
	w.db.Exec(`CREATE TRIGGER slow AFTER INSERT ON dinnerbell.outbox FOR EACH ROW EXECUTE FUNCTION slow()`)
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("large", "r1")))
	want := map[string][]string{"large": slices.Delete(slices.Clone(large), 100, 101)}
	for i := range 5 {
		envtest.Until(t, patience, func() error {
			if n := w.db.Int(`SELECT coalesce(max(notified), 0) FROM dinnerbell.campaign WHERE adv_campaign_id = 'large'`); n <= int64(i)*100 {
				return fmt.Errorf("%d are notified", n)
			}
			return nil
		})
		id := fmt.Sprint("small", i)
		w.produce(0, encodeCampaign(w.campaign(id, "few")))
		want[id] = few[1:]
	}
	w.expect(want)
	if epoch := svc.Status().Lanes[0].Epoch; epoch != 1 {
		t.Errorf("epoch %d: the session has ended", epoch)
	}
	w.checkLanes(svc)
}
