package stream

import (
	"errors"
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"dinnerbell/internal/testenv/envtest"
)

// A step is produced while it commits. One that Postgres keeps waiting does not
// hold up the readers of the topic, is seen by nobody before it is committed, and
// is shipped after it.
func TestSlowCommitDoesNotHoldUpReaders(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 30)})
	svc, _ := w.start()
	want := map[string][]string{"c1": w.subs["r1"]}
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	w.expect(want)
	produced, readable := w.ends()
	if produced != readable {
		t.Fatalf("%d records, readers come to %d: an open transaction before the test", produced, readable)
	}

	release := w.blockRows(`LOCK TABLE subscribers_feedback IN SHARE MODE`)
	w.produce(0, encodeCampaign(w.campaign("c2", "r1")))
	envtest.Until(t, patience, func() error {
		now, readable := w.ends()
		if now < produced+30 {
			return errors.New("the step was not produced while it commits")
		}
		if readable < now {
			return fmt.Errorf("readers come to %d of %d", readable, now)
		}
		return nil
	})
	if err := w.compare(want); err != nil {
		t.Errorf("before the commit: %v", err)
	}
	release()
	want["c2"] = w.subs["r1"]
	w.expect(want)
	w.checkLanes(svc)
	if l := svc.Status().Lanes[0]; l.Epoch != 1 {
		t.Errorf("epoch %d, want 1: the session has ended", l.Epoch)
	}
}

// Where every commit takes long, steps are not produced twice.
func TestSlowCommitsAreShippedOnce(t *testing.T) {
	t.Parallel()
	all := clients("0000", 10_000)
	w := newDeployment(t, 1, map[string][]string{"r1": all})
	w.slowSteps("0.15")
	w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	w.expect(map[string][]string{"c1": all})
	// A step of 2,000 once for nothing, and a few markers.
	if produced, _ := w.ends(); produced > 12_500 {
		t.Errorf("%d offsets for 10,000 notifications", produced)
	}
}

// slowSteps has each step take so many seconds in Postgres.
func (w *deployment) slowSteps(seconds string) {
	w.Helper()
	w.db.Exec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(` + seconds + `); RETURN NULL; END'`)
	w.db.Exec(`CREATE TRIGGER slow AFTER UPDATE OF seq ON dinnerbell.lane FOR EACH ROW EXECUTE FUNCTION slow()`)
}

// ends is how many offsets the notifications topic has, and how many of them a
// read_committed consumer gets past.
func (w *deployment) ends() (produced, readable int64) {
	w.Helper()
	adm := kadm.NewClient(w.kafka.Client())
	all, err := adm.ListEndOffsets(w.Context(), w.cfg.Kafka.Notifications)
	if err != nil {
		w.Fatal(err)
	}
	stable, err := adm.ListCommittedOffsets(w.Context(), w.cfg.Kafka.Notifications)
	if err != nil {
		w.Fatal(err)
	}
	all.Each(func(o kadm.ListedOffset) { produced += o.Offset })
	stable.Each(func(o kadm.ListedOffset) { readable += o.Offset })
	return produced, readable
}
