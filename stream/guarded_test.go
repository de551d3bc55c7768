package stream

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/operator"
)

// refusing is a feedback table that refuses so many percent of the clients, by a
// constraint on the client.
func refusing(percent int) string {
	return feedbackDDL(fmt.Sprintf(`, CONSTRAINT choosy CHECK (client_id NOT LIKE '0000%%' OR abs(hashtext(client_id)) %% 100 >= %d)`, percent))
}

// noteStepSizes has Postgres note how many notifications each step has.
func (w *deployment) noteStepSizes() {
	w.Helper()
	w.db.Exec(`CREATE TABLE step_size (seq int8, n int8)`)
	w.db.Exec(`CREATE FUNCTION note_size() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.step_size VALUES (NEW.seq, NEW.notifications); RETURN NULL; END'`)
	w.db.Exec(`CREATE TRIGGER note_size AFTER INSERT ON dinnerbell.outbox FOR EACH ROW EXECUTE FUNCTION note_size()`)
}

// A feedback table that refuses some of a large campaign's clients does not hold up the
// other campaigns of the lane: no step writes more than maxGuarded of its clients behind
// savepoints, not even a step that was built before the first refusal. Everybody else is
// notified, and everybody who is refused is named.
func TestRefusingTableHoldsNoLaneUp(t *testing.T) {
	t.Parallel()
	large := clients("0000", 4500)
	w := feedbackWorld(t, map[string][]string{"r1": large, "few": clients("0001", 5)}, refusing(10))
	w.noteStepSizes()
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("large", "r1")), encodeCampaign(w.campaign("small", "few")))
	var taken []string
	rows, err := w.db.Pool.Query(t.Context(), `SELECT c FROM unnest($1::text[]) c WHERE abs(hashtext(c)) % 100 >= 10`, large)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var client string
		if err := rows.Scan(&client); err != nil {
			t.Fatal(err)
		}
		taken = append(taken, client)
	}
	w.db.Exec(`DELETE FROM subscribers_feedback WHERE adv_campaign_id = 'c'`)
	w.expect(map[string][]string{"large": taken, "small": w.subs["few"]})
	if n := w.db.Int(`SELECT max(n) FROM step_size`); n > maxGuarded+5 {
		t.Errorf("a step has %d notifications, want %d at most", n, maxGuarded)
	}
	if epoch := svc.Status().Lanes[0].Epoch; epoch != 1 {
		t.Errorf("epoch %d: the session has ended", epoch)
	}
	envtest.Until(t, patience, func() error {
		named := map[string]bool{}
		for _, d := range w.deadLetters() {
			for _, c := range namedClients(t, d) {
				if named[c] {
					return fmt.Errorf("%s is named twice", c)
				}
				named[c] = true
			}
		}
		if len(named) != len(large)-len(taken) {
			return fmt.Errorf("%d clients are named, want %d", len(named), len(large)-len(taken))
		}
		return nil
	})
	w.checkLanes(svc)
}

// BenchmarkGuardedCampaign measures a campaign of which the feedback table refuses a part,
// and how long a small campaign beside it waits.
func BenchmarkGuardedCampaign(b *testing.B) {
	many := clients("0000", 20_000)
	for _, percent := range []int{1, 50, 100} {
		b.Run(fmt.Sprint(percent), func(b *testing.B) { benchmarkGuarded(b, many, refusing(percent)) })
	}
	all := make([]string, 100_000)
	for i := range all {
		all[i] = fmt.Sprintf("%08x-e89b-12d3-a456-426614174000", i)
	}
	b.Run("one of 100000", func(b *testing.B) {
		benchmarkGuarded(b, all, feedbackDDL(fmt.Sprintf(`, CONSTRAINT choosy CHECK (client_id <> '%s')`, all[30_000])))
	})
}

func benchmarkGuarded(b *testing.B, audience []string, ddl string) {
	b.Helper()
	w := feedbackWorld(b, map[string][]string{"r1": audience, "few": clients("f001", 5)}, ddl)
	w.cfg.Logger = nil
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("first", "few")))
	envtest.Until(b, patience, func() error {
		if n := svc.Status().Notifications.Shipped; n == 0 {
			return fmt.Errorf("%d shipped", n)
		}
		return nil
	})
	began := time.Now()
	w.produce(0, encodeCampaign(w.campaign("large", "r1")))
	var worst, sum time.Duration
	small, over := 0, false
	finished := func() bool {
		return w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = 'large' AND state = 'finished'`) == 1
	}
	for !over {
		sent := time.Now()
		small++
		id := fmt.Sprint("small", small)
		w.produce(0, encodeCampaign(w.campaign(id, "few")))
		envtest.Until(b, 10*patience, func() error {
			if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = $1 AND state = 'finished'`, id); n == 0 {
				return fmt.Errorf("%s is not over", id)
			}
			return nil
		})
		took := time.Since(sent)
		sum, worst = sum+took, max(worst, took)
		over = finished() || time.Since(began) > 90*time.Second
	}
	took, passed := time.Since(began), int64(len(audience))
	if !finished() {
		passed = -1 // not known: the campaign is not over
		for _, d := range w.deadLetters() {
			passed += int64(len(namedClients(b, d)))
		}
		passed += w.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = 'large'`)
	}
	b.ReportMetric(float64(passed)/took.Seconds(), "clients/s")
	b.ReportMetric(worst.Seconds()*1000, "ms-worst-small")
	b.ReportMetric(sum.Seconds()*1000/float64(small), "ms-mean-small")
	b.ReportMetric(0, "ns/op")
}

// namedClients returns the clients whom a dead letter names as left out.
func namedClients(t testing.TB, d *operator.DeadLetter) []string {
	t.Helper()
	if d.Class != campaign.ClassClients {
		return nil
	}
	var v struct {
		Clients []string `json:"client_ids"`
	}
	if err := json.Unmarshal(d.Value, &v); err != nil {
		t.Fatal(err)
	}
	return v.Clients
}
