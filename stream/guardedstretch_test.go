package stream

import (
	"fmt"
	"slices"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// A trigger that refuses a stretch of a campaign's clients in the same words does not
// refuse the campaign, of which the table has taken rows: the clients behind the stretch
// are notified.
func TestStretchOfRefusedClients(t *testing.T) {
	t.Parallel()
	all := clients("0000", 4500)
	w := feedbackWorld(t, map[string][]string{"r1": all}, feedbackDDL(""),
		`CREATE FUNCTION public.guard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.client_id BETWEEN ''00000400'' AND ''00000900'' THEN RAISE EXCEPTION ''not in this region''; END IF; RETURN NEW; END'`,
		`CREATE TRIGGER guard BEFORE INSERT ON subscribers_feedback FOR EACH ROW EXECUTE FUNCTION public.guard()`)
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	w.expect(map[string][]string{"c1": slices.Delete(slices.Clone(all), 0x400, 0x900)})
	named := map[string]bool{}
	envtest.Until(t, patience, func() error {
		for _, d := range w.deadLetters() {
			for _, c := range namedClients(t, d) {
				named[c] = true
			}
		}
		if len(named) != 0x500 {
			return fmt.Errorf("%d clients are named, want %d", len(named), 0x500)
		}
		return nil
	})
	w.checkLanes(svc)
}
