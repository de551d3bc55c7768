package stream

import (
	"errors"
	"testing"
	"time"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
)

// An owner that is paused in the middle of a TAKEOVER, while another one takes
// the lane over, decides and ships, reads P and K of different moments. That
// they contradict each other must not halt it.
func TestTakeoverOvertakenByAnotherDoesNotHalt(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 30)})
	paused := takeover.New(w.cfg.WithDefaults(), 0, takeover.Options{})
	defer paused.Close()
	if err := paused.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, stop := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")), encodeCampaign(w.campaign("c2", "r1")))
	want := map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r1"]}
	w.expect(want)
	stop()

	err := paused.Finish(t.Context())
	if _, halted := errors.AsType[*halt.Error](err); !halted {
		t.Fatalf("settle: %v; the test needs the contradiction", err)
	}
	if err := paused.ConfirmHalt(t.Context(), err); err == nil || errors.As(err, new(*halt.Error)) {
		t.Errorf("confirm: %v, want that the connection was ended", err)
	}
	// Where the other owner could not end it, the epoch shows the takeover.
	again, err2 := w.cfg.Sink.Connect(t.Context(), "paused")
	if err2 != nil {
		t.Fatal(err2)
	}
	paused.Conn = again
	if err := paused.ConfirmHalt(t.Context(), err); !errors.Is(err, sink.ErrTakenOver) {
		t.Errorf("confirm: %v, want that the lane was taken over", err)
	}
	w.start()
	w.produce(0, encodeCampaign(w.campaign("c3", "r1")))
	want["c3"] = w.subs["r1"]
	w.expect(want)
}

// A zombie's step misses the compare-and-swap: nothing of it stays.
func TestStepOfAFormerOwnerIsRefused(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 30)})
	l := &lane{svc: New(w.cfg, w.store, w.barrier)}
	zombie, err := l.takeOver(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer zombie.close()
	st := newStep(sink.ContractTable())
	st.nextOffset = 1
	st.sealStep(1)
	if _, err := w.db.Pool.Exec(t.Context(), `UPDATE `+w.cfg.Sink.Tables().Lane+` SET epoch = epoch + 1`); err != nil {
		t.Fatal(err)
	}
	if err := commitSteps(t, zombie, st); !errors.Is(err, sink.ErrTakenOver) {
		t.Errorf("commit of the former owner: %v", err)
	}
	owner, err := l.takeOver(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer owner.close()
	if err := commitSteps(t, owner, st); err != nil {
		t.Errorf("commit of the owner: %v", err)
	}
	if err := zombie.newShipper().shipBatch(t.Context(), []*record.Payload{{Seq: 1}}, &recordBuffers{}); err == nil {
		t.Error("the former owner shipped")
	}
	if err := owner.newShipper().shipBatch(t.Context(), []*record.Payload{{Seq: 1}}, &recordBuffers{}); err != nil {
		t.Errorf("the owner could not ship: %v", err)
	}
}

// A daemon that is frozen while the rows of its steps are on their way keeps
// their keys locked; the server waits for it without an end. The next owner ends
// its connections, or it could never write the same rows.
func TestFrozenOwnerDoesNotHoldUpTheNext(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 30)})
	frozen := w.owner()
	c := w.campaign("c1", "r1")
	st := w.stepFor(&c, w.subs["r1"]...)
	f := sink.NewPipeline(time.Now().Add(patience), frozen.claim.Conn)
	frozen.newCommitter().addFeedbackRows(f, st)
	f.Flush()
	if f.Err != nil {
		t.Fatal(f.Err)
	}
	// Its rows hold the table once they have arrived.
	envtest.Until(w, patience, func() error {
		var held bool
		err := w.db.Pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = $1::regclass AND mode = 'RowExclusiveLock' AND granted)`,
			w.cfg.Sink.Table).Scan(&held)
		if err == nil && !held {
			err = errors.New("the frozen owner's rows have not arrived")
		}
		return err
	})

	w.start()
	w.produce(0, encodeCampaign(c))
	w.expect(map[string][]string{"c1": w.subs["r1"]})
}
