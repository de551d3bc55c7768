package stream

import (
	"strings"
	"testing"
)

// A preview predicts the outcome of a message that is then sent.
func TestPreview(t *testing.T) {
	t.Parallel()
	all := clients("0000", 30)
	w := newDeployment(t, 1, map[string][]string{"r1": all, "r2": all[:20]})
	svc, _ := w.start()
	sent := w.campaign("sent", "r2")
	w.produce(0, encodeCampaign(sent))
	w.expect(map[string][]string{"sent": all[:20]})
	edited, expired, scheduled, other := sent, w.campaign("a", "r1"), w.campaign("b", "r1"), w.campaign("sent", "r1")
	edited.Content = "edited"
	expired.End = expired.Start + 1
	scheduled.Start += 1800
	for name, tc := range map[string]struct {
		value []byte
		want  Preview
	}{
		"new":       {encodeCampaign(w.campaign("c", "r1")), Preview{Campaign: "c", Restaurant: "r1", Outcome: "valid", Audience: 30, Notified: 30}},
		"nobody":    {encodeCampaign(w.campaign("c", "r3")), Preview{Campaign: "c", Restaurant: "r3", Outcome: "valid"}},
		"repeat":    {encodeCampaign(sent), Preview{Campaign: "sent", Restaurant: "r2", Outcome: "repeat", Audience: 20, Have: 20}},
		"edit":      {encodeCampaign(edited), Preview{Campaign: "sent", Restaurant: "r2", Outcome: "valid", Audience: 20, Have: 20}},
		"other":     {encodeCampaign(other), Preview{Campaign: "sent", Restaurant: "r1", Outcome: "valid", Audience: 30, Have: 20, Notified: 10}},
		"expired":   {encodeCampaign(expired), Preview{Campaign: "a", Restaurant: "r1", Outcome: "expired", Audience: 30}},
		"scheduled": {encodeCampaign(scheduled), Preview{Campaign: "b", Restaurant: "r1", Outcome: "scheduled", Audience: 30, Notified: 30}},
		"refused":   {[]byte("{}"), Preview{Outcome: "refused", Reason: "restaurant_id is missing"}},
	} {
		got, err := svc.Preview(t.Context(), tc.value)
		if err != nil || *got != tc.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, tc.want)
		}
	}
	if p, err := svc.Preview(t.Context(), encodeCampaign(w.campaign("c", "R1 "))); err != nil || p.Audience != 0 || !strings.Contains(p.Hint, `"r1"`) {
		t.Errorf("an id that differs in letter case: %+v, %v", p, err)
	}
	if n := w.countDelivered(); n != 0 {
		t.Errorf("%d pairs are left in the delivered cache", n)
	}
	w.expect(map[string][]string{"sent": all[:20]})
}
