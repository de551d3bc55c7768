package stream

import (
	"errors"
	"testing"
)

// An owner that is paused in the middle of a TAKEOVER, while another one takes
// the lane over, decides and ships, reads P and K of different moments. That
// they contradict each other must not halt it.
func TestTakeoverOvertakenByAnotherDoesNotHalt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, map[string][]string{"r1": clients("0000", 30)})
	paused := (&lane{svc: New(w.cfg, w.store, w.barrier)}).newSession()
	defer paused.close()
	if err := paused.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, stop := w.start()
	w.produce(0, w.campaign("c1", "r1").json(), w.campaign("c2", "r1").json())
	want := map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r1"]}
	w.expect(want)
	stop()

	err := paused.settle(t.Context())
	if _, halted := errors.AsType[*HaltError](err); !halted {
		t.Fatalf("settle: %v; the test needs the contradiction", err)
	}
	if err := paused.confirm(t.Context(), err); !errors.Is(err, errTakenOver) {
		t.Errorf("confirm: %v, want that the lane was taken over", err)
	}
	w.start()
	w.produce(0, w.campaign("c3", "r1").json())
	want["c3"] = w.subs["r1"]
	w.expect(want)
}

// A zombie's step misses the compare-and-swap: nothing of it stays.
func TestStepOfAFormerOwnerIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, map[string][]string{"r1": clients("0000", 30)})
	l := &lane{svc: New(w.cfg, w.store, w.barrier)}
	zombie, err := l.takeover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer zombie.close()
	owner, err := l.takeover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer owner.close()
	st := newStep()
	st.nextOffset = 1
	st.seal(1)
	if _, err := zombie.commit(t.Context(), 1, st); !errors.Is(err, errTakenOver) {
		t.Errorf("commit of the former owner: %v", err)
	}
	if _, err := owner.commit(t.Context(), 1, st); err != nil {
		t.Errorf("commit of the owner: %v", err)
	}
	if err := zombie.ship(t.Context(), []*payload{{seq: 1}}, &outbound{}); err == nil {
		t.Error("the former owner shipped")
	}
	if err := owner.ship(t.Context(), []*payload{{seq: 1}}, &outbound{}); err != nil {
		t.Errorf("the owner could not ship: %v", err)
	}
}
