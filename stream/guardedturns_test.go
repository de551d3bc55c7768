package stream

import (
	"fmt"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// Guarded campaigns share the room that a step has for them: none of them waits for the
// last client of another one.
func TestGuardedCampaignsTakeTurns(t *testing.T) {
	t.Parallel()
	w := feedbackWorld(t, map[string][]string{"r1": clients("0000", 4000), "r2": clients("0000", 4000), "r3": clients("0000", 4000)}, refusing(1))
	w.db.Exec(`CREATE TABLE when_finished (least int8)`)
	w.db.Exec(`CREATE FUNCTION note_finish() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN
  INSERT INTO public.when_finished SELECT min(notified) FROM dinnerbell.campaign; RETURN NULL; END'`)
	w.db.Exec(`CREATE TRIGGER note_finish AFTER UPDATE ON dinnerbell.campaign FOR EACH ROW WHEN (NEW.state = 'finished' AND OLD.state <> 'finished') EXECUTE FUNCTION note_finish()`)
	w.start()
	for _, r := range []string{"r1", "r2", "r3"} {
		w.produce(0, encodeCampaign(w.campaign("c"+r, r)))
	}
	envtest.Until(t, patience, func() error {
		if n := w.db.Int(`SELECT count(*) FROM when_finished`); n < 3 {
			return fmt.Errorf("%d are finished", n)
		}
		return nil
	})
	if n := w.db.Int(`SELECT least FROM when_finished LIMIT 1`); n < 2000 {
		t.Errorf("when the first campaign of three has come to its end, another one has notified %d of 4000", n)
	}
}
