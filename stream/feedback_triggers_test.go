package stream

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/testenv/envtest"
)

// A trigger that drops rows in silence halts the lane and is named, whether it
// was there at the takeover or came while the lane ran.
func TestTriggerThatDropsRowsHalts(t *testing.T) {
	t.Parallel()
	const skip = `CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.client_id LIKE ''%0001-%'' THEN RETURN NULL; END IF; RETURN NEW; END';
CREATE TRIGGER skip_some BEFORE INSERT ON subscribers_feedback FOR EACH ROW EXECUTE FUNCTION skip()`
	for name, later := range map[string]bool{"at the takeover": false, "while it runs": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 20), "r2": {"a"}})
			if !later {
				w.db.Exec(skip)
			}
			svc := New(w.cfg, w.store, w.barrier)
			ended := make(chan error, 1)
			go func() { ended <- svc.Run(t.Context()) }()
			w.produce(0, encodeCampaign(w.campaign("c0", "r2")))
			w.expect(map[string][]string{"c0": {"a"}})
			if later {
				w.db.Exec(skip)
			}
			w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
			select {
			case err := <-ended:
				if halted, ok := errors.AsType[*halt.Error](err); !ok || !strings.Contains(halted.What, "skip_some") {
					t.Errorf("ended with %v", err)
				}
			case <-time.After(patience):
				t.Fatalf("not halted: %+v", svc.Status().Lanes)
			}
			w.expect(map[string][]string{"c0": {"a"}}) // nobody without a row, no row without a record
		})
	}
}

// A trigger that changes a notification halts the lane: row and record
// would differ.
func TestTriggerThatChangesRowsHalts(t *testing.T) {
	t.Parallel()
	for column, change := range map[string]string{
		"adv_campaign_content": "upper(NEW.adv_campaign_content)", "trigger_datetime_created": "5", "adv_campaign_datetime_end": "NEW.adv_campaign_datetime_end + 1",
		"client_id": "NEW.client_id || '1'",
	} {
		t.Run(column, func(t *testing.T) {
			t.Parallel()
			w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 20)})
			w.db.Exec(`CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.` + column + ` := ` + change + `; RETURN NEW; END$$`)
			w.db.Exec(`CREATE TRIGGER change_it BEFORE INSERT ON subscribers_feedback FOR EACH ROW EXECUTE FUNCTION change()`)
			w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
			halt := w.halted()
			if halt == nil || !strings.Contains(halt.What, "change_it") || !strings.Contains(halt.What, strings.TrimSuffix(column, "_id")) {
				t.Errorf("halted with %v", halt)
			}
			w.expect(map[string][]string{})
		})
	}
}

// An error in a function of the user's that is not about a row names the function.
func TestFunctionThatFailsIsNamed(t *testing.T) {
	t.Parallel()
	for when, sql := range map[string]string{
		"before": `CREATE TRIGGER broken BEFORE INSERT ON subscribers_feedback FOR EACH ROW EXECUTE FUNCTION public.broken()`,
		"after":  `CREATE TRIGGER broken AFTER INSERT ON subscribers_feedback FOR EACH ROW EXECUTE FUNCTION public.broken()`,
	} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 20)})
			w.db.Exec(`CREATE FUNCTION public.broken() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO nowhere VALUES (1); RETURN NEW; END'`)
			w.db.Exec(sql)
			svc, _ := w.start()
			w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
			envtest.Until(t, patience, func() error {
				lanes := svc.Status().Lanes
				if len(lanes) == 0 || !strings.Contains(lanes[0].LastError, "function broken()") || !strings.Contains(lanes[0].LastError, "search_path") {
					return fmt.Errorf("lanes: %+v", lanes)
				}
				return nil
			})
			w.db.Exec(`CREATE TABLE public.nowhere (n int4)`)
			w.expect(map[string][]string{"c1": w.subs["r1"]})
		})
	}
}
