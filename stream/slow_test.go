package stream

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/pgsession"
	"dinnerbell/internal/testenv/envtest"
)

// Triggers that take longer for a step than it may take are served by smaller
// steps, which grow again when the triggers are quick.
func TestSlowTriggersAreServedBySmallerSteps(t *testing.T) {
	t.Parallel()
	for when, timing := range map[string]string{"after": "AFTER", "before": "BEFORE"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 400)})
			w.cfg.SinkTimeout = 2 * time.Second
			w.db.Exec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.adv_campaign_id = ''c1'' THEN PERFORM pg_catalog.pg_sleep(0.01); END IF; RETURN NEW; END'`)
			w.db.Exec(`CREATE TRIGGER slow ` + timing + ` INSERT ON subscribers_feedback FOR EACH ROW EXECUTE FUNCTION slow()`)
			svc, _ := w.start()
			w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
			envtest.Until(t, patience, func() error {
				svc.mu.Lock()
				defer svc.mu.Unlock()
				if h := svc.lanes[0]; h == nil || h.lane.narrowed.Load() == 0 {
					return fmt.Errorf("the steps are as large as before")
				}
				return nil
			})
			want := map[string][]string{"c1": w.subs["r1"]}
			w.expect(want)
			for i := range 5 {
				id := fmt.Sprintf("quick%d", i)
				want[id] = w.subs["r1"]
				w.produce(0, encodeCampaign(w.campaign(id, "r1")))
			}
			w.expect(want)
		})
	}
}

// The holder of a lock that a step waits for is named, also where the server ends
// the wait.
func TestHolderOfALockIsNamed(t *testing.T) {
	t.Parallel()
	const row = `INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact, adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created) VALUES ('r', 'c1', '', '', '', 1, 2, 3, (SELECT min(client_id) FROM subscribers_feedback), 4)`
	for name, c := range map[string]struct {
		sql     string
		timeout time.Duration
	}{"table": {`LOCK TABLE subscribers_feedback IN SHARE MODE`, time.Second}, "row, until lock_timeout": {row, 30 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 5)})
			w.cfg.SinkTimeout = c.timeout
			w.cfg.Sink.Pins = []pgsession.Setting{{Name: "lock_timeout", Value: "3s"}} // the daemon's 20 s would be waited for
			want := map[string][]string{"c0": w.subs["r1"]}
			svc, _ := w.start()
			w.produce(0, encodeCampaign(w.campaign("c0", "r1")))
			w.expect(want)
			tx, err := w.db.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, sql := range []string{`SET LOCAL application_name = 'their job'`, c.sql} {
				if _, err := tx.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}
			w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
			envtest.Until(t, patience, func() error {
				lanes := svc.Status().Lanes
				if len(lanes) == 0 || !strings.Contains(lanes[0].LastError, "their job") || !strings.Contains(lanes[0].LastError, "pg_terminate_backend") {
					return fmt.Errorf("lanes: %+v", lanes)
				}
				return nil
			})
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			want["c1"] = w.subs["r1"]
			w.expect(want)
		})
	}
}
