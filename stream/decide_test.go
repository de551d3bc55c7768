package stream

import (
	"fmt"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// Many small campaigns that arrive together: each one's row is written once, as
// finished.
func TestSmallCampaignsAreWrittenOnce(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 30)})
	w.cfg.StepClients = 200
	w.db.Exec(`CREATE TABLE updates (id text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO updates VALUES (NEW.adv_campaign_id); RETURN NULL; END';
CREATE TRIGGER note AFTER UPDATE ON dinnerbell.campaign FOR EACH ROW EXECUTE FUNCTION note()`)
	want := map[string][]string{}
	var values [][]byte
	for i := range 200 {
		id := fmt.Sprint("c", i)
		want[id] = w.subs["r1"]
		values = append(values, encodeCampaign(w.campaign(id, "r1")))
	}
	w.produce(0, values...)
	svc, _ := w.start()
	w.expect(want)
	w.checkLanes(svc)
	if n := w.db.Int(`SELECT count(*) FROM updates`); n > 0 {
		t.Errorf("%d of 200 campaigns were updated after their insert", n)
	}
}

// Edits and repeats of one campaign in one batch, while it is served: the newest
// stands, everybody has it once.
func TestEditsOfOneBatch(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 250), "r2": clients("0001", 10)})
	w.cfg.StepClients = 100
	a, other := w.campaign("c", "r1"), w.campaign("other", "r2")
	b := a
	b.Content = "second content"
	last := a
	last.Content, last.Owner = "third content", "somebody"
	w.produce(0, encodeCampaign(a), encodeCampaign(a), encodeCampaign(other), encodeCampaign(b), encodeCampaign(b), encodeCampaign(a), []byte("no json"), encodeCampaign(other), encodeCampaign(last), encodeCampaign(last))
	svc, _ := w.start()
	w.awaitOffset(0, 10)
	w.expect(map[string][]string{"c": w.subs["r1"], "other": w.subs["r2"]})
	envtest.Until(t, patience, func() error {
		if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE state = 'finished'`); n != 2 {
			return fmt.Errorf("%d campaigns are finished", n)
		}
		return nil
	})
	if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_content = 'third content' AND msg_offset = 9`); n != 1 {
		t.Error("the newest message does not stand")
	}
	if svc.Status().Campaigns.Dead != 1 {
		t.Error("the dead letter is not counted")
	}
	if epoch := w.db.Int(`SELECT epoch FROM dinnerbell.lane`); epoch != 1 {
		t.Errorf("the lane was taken over %d times", epoch)
	}
}
