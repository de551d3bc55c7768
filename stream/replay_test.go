package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
)

// subscribe replaces the store's subscriptions, as a repair does.
func (w *deployment) subscribe(subs map[string][]string) {
	w.Helper()
	w.subs = subs
	loader, err := w.store.NewGeneration()
	if err != nil {
		w.Fatal(err)
	}
	row := 0
	for _, restaurant := range slices.Sorted(maps.Keys(subs)) {
		for _, client := range subs[restaurant] {
			row++
			if err := loader.Add(id.PackRow(fmt.Sprint(row)), packID(w, restaurant), packID(w, client)); err != nil {
				w.Fatal(err)
			}
		}
	}
	if err := loader.Finish(state.Source{SystemID: "test"}, 1); err != nil {
		w.Fatal(err)
	}
}

// replayAll runs a replay that must cover every lane.
func (w *deployment) replayAll(svc *Service, req ReplayRequest) ReplayCounts {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 2*patience)
	defer cancel()
	r, err := svc.Replay(ctx, req, nil)
	if err != nil {
		w.Fatalf("replay: %v", err)
	}
	for _, l := range r.Lanes {
		if l.NotCovered != "" {
			w.Fatalf("lane %d: %s", l.Partition, l.NotCovered)
		}
	}
	return r.ReplayCounts
}

// replayTwice does a dry run first, which must predict the replay's counts and change
// nothing, and then replays twice: the second replay must find no new clients.
func (w *deployment) replayTwice(svc *Service, req ReplayRequest, want ReplayCounts) {
	w.Helper()
	before := len(w.rows())
	req.DryRun = true
	if got := w.replayAll(svc, req); got != want {
		w.Errorf("dry run: %+v, want %+v", got, want)
	}
	if n := len(w.rows()); n != before {
		w.Errorf("a dry run notified %d", n-before)
	}
	req.DryRun = false
	if got := w.replayAll(svc, req); got != want {
		w.Errorf("replay: %+v, want %+v", got, want)
	}
	if n := len(w.rows()) - before; int64(n) != want.Notified {
		w.Errorf("%d rows are new, want %d", n, want.Notified)
	}
	want.Have, want.Notified = want.Have+want.Notified, 0
	if got := w.replayAll(svc, req); got != want {
		w.Errorf("replay again: %+v, want %+v", got, want)
	}
}

func (w *deployment) awaitReady(svc *Service) {
	w.Helper()
	envtest.Until(w, patience, func() error {
		if s := svc.Status(); !s.Ready() || len(s.Lanes) == 0 {
			return fmt.Errorf("not ready: %+v", s)
		}
		return nil
	})
}

// Subscriptions had been wrong and were repaired: a replay notifies the clients who were
// missed, and no client twice.
func TestReplayNotifiesOnlyTheMissed(t *testing.T) {
	t.Parallel()
	all := clients("0000", 5000)
	w := newDeployment(t, 2, map[string][]string{"r1": all[:3000], "r2": all[:10]})
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")), encodeCampaign(w.campaign("c2", "r2")))
	w.produce(1, encodeCampaign(w.campaign("c3", "r3")), encodeCampaign(w.campaign("m", "r2")))
	w.expect(map[string][]string{"c1": all[:3000], "c2": all[:10], "m": all[:10]})

	w.subscribe(map[string][]string{"r1": all, "r2": all[:10], "r3": all[:700]})
	w.replayTwice(svc, ReplayRequest{}, ReplayCounts{Messages: 4, Valid: 4, Have: 3020, Notified: 2700})
	w.expect(map[string][]string{"c1": all, "c2": all[:10], "c3": all[:700], "m": all[:10]})
	w.checkLanes(svc)
	if n := w.countDelivered(); n != 0 {
		t.Errorf("%d pairs are left in the delivered cache", n)
	}
}

// countDelivered counts the pairs in the delivered cache.
func (w *deployment) countDelivered() int {
	w.Helper()
	n, err := w.store.Delivered()
	if err != nil {
		w.Fatal(err)
	}
	return n
}

// Every kind of message: the newest message of each campaign counts, an ended campaign
// stays over, a scheduled campaign goes on waiting, and no dead letter is sent again.
func TestReplayOfEveryKindOfMessage(t *testing.T) {
	t.Parallel()
	few := clients("0000", 20)
	w := newDeployment(t, 2, map[string][]string{"r1": few[:5], "r2": few[:5]})
	svc, _ := w.start()
	now := time.Now()
	at := func(n int) time.Time { return now.Add(time.Duration(n-1000) * time.Millisecond) }
	ended := func(c campaign.Campaign) campaign.Campaign { c.Start, c.End = now.Unix()-100, now.Unix()-50; return c }
	scheduled := w.campaign("scheduled", "r1")
	scheduled.Start = now.Unix() + 1800
	edited := w.campaign("edited", "r1")
	edit := edited
	edit.Content = "as edited"
	both := w.campaign("both", "r1") // on both partitions, the second newer
	newerOfBoth := both
	newerOfBoth.Content = "newer"

	w.produceAt(0, at(1), []byte("no json"))
	w.produceAt(0, at(2), encodeCampaign(ended(w.campaign("expired", "r1"))))
	w.produceAt(0, at(3), encodeCampaign(w.campaign("cancelled", "r3")))
	w.produceAt(0, at(4), encodeCampaign(scheduled))
	w.produceAt(0, at(5), encodeCampaign(edited))
	w.produceAt(0, at(6), encodeCampaign(edit))
	w.produceAt(0, at(7), encodeCampaign(w.campaign("shared", "r1")))
	w.produceAt(0, at(8), encodeCampaign(w.campaign("shared", "r2")))
	w.produceAt(0, at(9), encodeCampaign(both))
	w.awaitOffset(0, 9)
	w.produceAt(1, at(10), encodeCampaign(newerOfBoth))
	w.produceAt(1, at(11), encodeCampaign(ended(w.campaign("cancelled", "r3"))))
	w.produceAt(1, at(12), encodeCampaign(w.campaign("m", "r1")))
	want := map[string][]string{"edited": few[:5], "shared": few[:5], "both": few[:5], "m": few[:5]}
	w.expect(want)
	w.awaitOffset(1, 3)
	envtest.Until(w, patience, func() error { // the edits have been joined and notify no client any more
		if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE state = 'pending' AND adv_campaign_id <> 'scheduled'`); n > 0 {
			return fmt.Errorf("%d campaigns are pending", n)
		}
		return nil
	})

	w.subscribe(map[string][]string{"r1": few[:12], "r2": few[8:], "r3": few})
	w.replayTwice(svc, ReplayRequest{}, ReplayCounts{Messages: 12, Dead: 1, Expired: 2, Superseded: 3, Scheduled: 1, Valid: 5, Have: 20, Notified: 7 + 15 + 7 + 7})
	for _, id := range []string{"edited", "both", "m"} {
		want[id] = few[:12]
	}
	want["shared"] = few
	w.expect(want)
	for _, n := range w.rows() {
		if slices.Contains(few[5:], n.client) && (n.ID == "edited" && n.Content != "as edited" || n.ID == "both" && n.Content != "newer") {
			t.Errorf("%s got %q of %s", n.client, n.Content, n.ID)
		}
	}
	if s := svc.Status().Campaigns; s.Scheduled != 1 || s.Dead != 1 {
		t.Errorf("%d scheduled, %d dead; want 1 and 1", s.Scheduled, s.Dead)
	}
	if n := len(w.kafka.ReadAll(w.cfg.Kafka.DeadLetters)); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
}

// Campaigns whose rows are gone, and messages that were skipped: the newest message of
// the topic counts, on any partition, for any range.
func TestReplayOfWhatPostgresDoesNotKnow(t *testing.T) {
	t.Parallel()
	few := clients("0000", 20)
	w := newDeployment(t, 2, map[string][]string{"r1": few})
	now := time.Now()
	at := func(n int) time.Time { return now.Add(time.Duration(n-1000) * time.Millisecond) }
	ended := func(c campaign.Campaign) campaign.Campaign { c.Start, c.End = now.Unix()-100, now.Unix()-50; return c }
	later := w.campaign("later", "r1")
	later.Start = now.Unix() + 1800
	moved := later
	moved.Start = now.Unix() + 3000

	w.produceAt(1, at(2), encodeCampaign(ended(w.campaign("cancelled", "r1"))))
	w.produceAt(0, at(1), encodeCampaign(w.campaign("cancelled", "r1")))
	w.produceAt(0, at(3), encodeCampaign(w.campaign("skipped", "r1")))
	w.produceAt(1, at(4), encodeCampaign(w.campaign("skipped edit", "r1")))
	w.produceAt(0, at(5), encodeCampaign(later))
	// As `resolve --accept-missing` leaves it.
	if err := initLanesOf(w); err != nil {
		t.Fatal(err)
	}
	w.db.Exec(`UPDATE dinnerbell.lane SET next_offset = CASE lane WHEN 0 THEN 3 ELSE 2 END`)
	svc, stop := w.start()
	w.awaitReady(svc)
	w.replayTwice(svc, ReplayRequest{From: ReplayStart{Time: at(3)}}, ReplayCounts{Messages: 3, Scheduled: 1, Valid: 2, Notified: 40})
	w.expect(map[string][]string{"skipped": few, "skipped edit": few})

	// The row of a campaign that runs still is older than a cancel that was skipped.
	w.produceAt(0, at(6), encodeCampaign(moved))
	w.produceAt(0, at(7), encodeCampaign(ended(later)))
	w.awaitOffset(0, 5)
	stop()
	w.db.Exec(`UPDATE dinnerbell.campaign SET msg_offset = 2, adv_campaign_datetime_start = $1, adv_campaign_datetime_end = $2, state = 'pending' WHERE adv_campaign_id = 'later'`, later.Start, later.End)
	svc, _ = w.start()
	w.awaitReady(svc)
	got := w.replayAll(svc, ReplayRequest{})
	if want := (ReplayCounts{Messages: 7, Expired: 2, Superseded: 3, Valid: 2, Have: 40}); got != want {
		t.Errorf("replay: %+v, want %+v", got, want)
	}
	if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = 'later' AND state = 'expired'`); n != 1 {
		t.Error("the cancel was not applied")
	}
	// The range ends before the cancel; the cancel counts all the same.
	w.db.Exec(`DELETE FROM dinnerbell.campaign WHERE adv_campaign_id IN ('cancelled', 'later')`)
	got = w.replayAll(svc, ReplayRequest{Until: at(2)})
	if want := (ReplayCounts{Messages: 1, Superseded: 1}); got != want {
		t.Errorf("replay: %+v, want %+v", got, want)
	}
	w.expect(map[string][]string{"skipped": few, "skipped edit": few})
}

// initLanesOf writes the lane rows as the first daemon does.
func initLanesOf(w *deployment) error {
	conn, err := w.cfg.Sink.Connect(w.Context(), "test")
	if err != nil {
		return err
	}
	defer sink.CloseConn(conn)
	return takeover.InitLanes(w.Context(), w.cfg.WithDefaults(), conn)
}

// A range with more campaigns than an index holds is replayed in several hash ranges.
func TestReplayInRounds(t *testing.T) {
	t.Parallel()
	few := clients("0000", 3)
	w := newDeployment(t, 2, map[string][]string{"r1": few[:1], "r2": few[:1]})
	svc, _ := w.start()
	svc.indexCampaigns = 10
	var values [2][][]byte
	want := map[string][]string{}
	for i := range 60 {
		id := fmt.Sprintf("c%d", i)
		want[id] = few
		values[i%2] = append(values[i%2], encodeCampaign(w.campaign(id, "r1")), encodeCampaign(w.campaign(id, "r2")))
	}
	for p, v := range values {
		w.produce(int32(p), append(v, []byte("dead"))...)
		w.awaitOffset(p, int64(len(v)+1))
	}
	w.subscribe(map[string][]string{"r1": few, "r2": few})
	w.replayTwice(svc, ReplayRequest{}, ReplayCounts{Messages: 122, Dead: 2, Valid: 120, Have: 60, Notified: 120})
	w.expect(want)
}

// Small campaigns that arrive during a replay of large ones do not wait for it.
func TestReplayLeavesLiveCampaignsTheirTurn(t *testing.T) {
	t.Parallel()
	all := clients("0000", 10_000)
	w := newDeployment(t, 1, map[string][]string{"big": nil, "small": all[:10]})
	w.cfg.StepClients = 200
	svc, _ := w.start()
	want := map[string][]string{}
	for i := range 12 {
		id := fmt.Sprintf("big%d", i)
		w.produce(0, encodeCampaign(w.campaign(id, "big")))
		want[id] = all
	}
	w.awaitOffset(0, 12)
	w.subscribe(map[string][]string{"big": all, "small": all[:10]})
	type end struct {
		report *ReplayReport
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		r, err := svc.Replay(t.Context(), ReplayRequest{}, nil)
		ended <- end{r, err}
	}()
	for i := range 5 {
		envtest.Until(t, patience, func() error {
			if n := svc.Status().Notifications.Decided; n < int64(2000*(i+1)) {
				return fmt.Errorf("%d decided", n)
			}
			return nil
		})
		before := svc.Status().Lanes[0].Decided
		id := fmt.Sprintf("small%d", i)
		want[id] = w.subs["small"]
		w.produce(0, encodeCampaign(w.campaign(id, "small")))
		envtest.Until(t, patience, func() error {
			if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = $1`, id); n != 10 {
				return fmt.Errorf("%d of 10", n)
			}
			return nil
		})
		// Two, and as many as pass while it is produced; 600 are the replay's.
		if steps := svc.Status().Lanes[0].Decided - before; steps > 100 {
			t.Errorf("%s waited for %d steps", id, steps)
		}
		if live := svc.Status().Campaigns.Live; live > maxReplayLive+1 {
			t.Errorf("%d campaigns of the replay are live", live)
		}
	}
	select {
	case e := <-ended:
		t.Errorf("the replay was over before the small campaigns came: %+v, %v", e.report, e.err)
	default:
		if e := <-ended; e.err != nil || e.report.Notified != 12*10_000 {
			t.Errorf("replay: %+v, %v", e.report, e.err)
		}
	}
	w.expect(want)
}

// A replay that is interrupted leaves nothing to mend: its sessions die, and then the
// whole service.
func TestReplayThatIsInterrupted(t *testing.T) {
	t.Parallel()
	all := clients("0000", 3000)
	w := newDeployment(t, 1, map[string][]string{"r1": all[:100]})
	w.cfg.StepClients, w.cfg.DrainTimeout = 50, time.Nanosecond
	svc, stop := w.start()
	want := map[string][]string{}
	var values [][]byte
	for i := range 10 {
		id := fmt.Sprintf("c%d", i)
		want[id] = all
		values = append(values, encodeCampaign(w.campaign(id, "r1")))
	}
	w.produce(0, values...)
	w.awaitOffset(0, 10)
	envtest.Until(t, patience, func() error {
		if n := len(w.rows()); n != 1000 {
			return fmt.Errorf("%d rows", n)
		}
		return nil
	})
	w.subscribe(map[string][]string{"r1": all})
	reached := func(n int64) {
		t.Helper()
		envtest.Until(t, patience, func() error {
			if got := w.db.Int(`SELECT count(*) FROM subscribers_feedback`); got < n {
				return fmt.Errorf("%d rows", got)
			}
			return nil
		})
	}
	ended := make(chan error, 1)
	ask := func() {
		_, err := svc.Replay(t.Context(), ReplayRequest{}, nil)
		ended <- err
	}
	go ask()
	reached(2000)
	if _, err := svc.Replay(t.Context(), ReplayRequest{}, nil); !errors.Is(err, ErrReplayUnderWay) {
		t.Errorf("a second replay at once: %v", err)
	}
	stop() // in the middle, with steps in flight
	if err := <-ended; err != nil {
		t.Logf("the replay of a service that ended: %v", err)
	}
	svc, _ = w.start()
	w.awaitReady(svc)
	go ask()
	for i := range int64(3) {
		reached(5000 + 5000*i)
		w.db.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'dinnerbell % lane 0 %'`)
	}
	if err := <-ended; err != nil {
		t.Errorf("the replay did not go on with the next session: %v", err)
	}
	w.expect(want)
}

// Retention has deleted the start: the error names the first offset.
func TestReplayOfWhatIsDeleted(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	svc, _ := w.start()
	now := time.Now()
	for i := range 5 {
		w.produceAt(0, now.Add(time.Duration(i-100)*time.Second), encodeCampaign(w.campaign(fmt.Sprint("c", i), "r1")))
	}
	w.awaitOffset(0, 5)
	adm := kadm.NewClient(w.kafka.Client())
	upTo := kadm.Offsets{}
	upTo.Add(kadm.Offset{Topic: w.cfg.Kafka.Campaigns, Partition: 0, At: 3})
	if _, err := adm.DeleteRecords(t.Context(), upTo); err != nil {
		t.Fatal(err)
	}
	for name, req := range map[string]ReplayRequest{
		"time":    {From: ReplayStart{Time: now.Add(-99 * time.Second)}},
		"offsets": {From: ReplayStart{Offsets: map[int32]int64{0: 1}}},
	} {
		if _, err := svc.Replay(t.Context(), req, nil); err == nil || !strings.Contains(err.Error(), "begins at offset 3") || !strings.Contains(err.Error(), "--from earliest") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, req := range map[string]ReplayRequest{
		"earliest": {},
		"time":     {From: ReplayStart{Time: now.Add(-97 * time.Second)}},
		"offsets":  {From: ReplayStart{Offsets: map[int32]int64{0: 3}}},
	} {
		if got := w.replayAll(svc, req); got.Valid != 2 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// Lanes of another daemon are named, not passed over.
func TestReplayNamesLanesOfOtherDaemons(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 2, map[string][]string{"r1": {"a"}})
	first, _ := w.start()
	w.awaitReady(first)
	w.cfg.Kafka.InstanceID = "other"
	second, _ := w.start()
	envtest.Until(t, patience, func() error {
		if a, b := first.Status(), second.Status(); len(a.Lanes) != 1 || len(b.Lanes) != 1 || !a.Ready() || !b.Ready() {
			return fmt.Errorf("%+v, %+v", a.Lanes, b.Lanes)
		}
		return nil
	})
	w.produce(0, encodeCampaign(w.campaign("c0", "r1")))
	w.produce(1, encodeCampaign(w.campaign("c1", "r1")))
	w.expect(map[string][]string{"c0": {"a"}, "c1": {"a"}})
	covered := map[int32]int{}
	for _, svc := range []*Service{first, second} {
		r, err := svc.Replay(t.Context(), ReplayRequest{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range r.Lanes {
			if l.NotCovered == "" {
				covered[l.Partition]++
			} else if !strings.Contains(l.NotCovered, "another daemon") {
				t.Errorf("lane %d: %s", l.Partition, l.NotCovered)
			}
		}
		if r.Valid != 1 || r.Have != 1 {
			t.Errorf("%+v", r)
		}
	}
	if !maps.Equal(covered, map[int32]int{0: 1, 1: 1}) {
		t.Errorf("covered %v", covered)
	}
}
