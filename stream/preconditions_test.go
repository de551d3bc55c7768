package stream

import (
	"errors"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/precondition"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
)

// A daemon that is started before setup has run waits for it and names it.
func TestStartWaitsForSetup(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 2, map[string][]string{"r1": clients("0000", 5)})
	w.cfg.Kafka.Progress = w.kafka.Topic("short", 1, map[string]string{"cleanup.policy": "compact"})
	w.unmetPatience = time.Nanosecond
	svc, _ := w.start()
	envtest.Until(t, patience, func() error {
		if last := svc.Status().LastError; !strings.Contains(last, "fewer than the 2") || !strings.Contains(last, "dinnerbell setup") {
			return errors.New(last)
		}
		return nil
	})
	if _, err := topic.Setup(t.Context(), w.cfg.Kafka); err != nil {
		t.Fatal(err)
	}
	w.produce(1, encodeCampaign(w.campaign("c", "r1")))
	w.expect(map[string][]string{"c": w.subs["r1"]})
}

// A violation halts only once it has lasted, and what setup makes never does.
func TestViolationHaltsOnceItHasLasted(t *testing.T) {
	t.Parallel()
	lasting := &precondition.UnmetError{Finding: precondition.Finding{Name: "kafka.other", Object: "topic t", Found: "it is wrong", Fix: "MEND IT"}}
	mended := &precondition.UnmetError{Finding: precondition.Finding{Name: "kafka.topics", Object: "topic t", Found: "it is missing", Fix: "dinnerbell setup"}}
	var u takeover.ViolationWatch
	if err := u.HaltIfLasting(lasting, 3, time.Hour); !errors.Is(err, error(lasting)) {
		t.Errorf("a young violation gives %v", err)
	}
	halted, ok := errors.AsType[*halt.Error](u.HaltIfLasting(lasting, 3, 0))
	if !ok || halted.Lane != 3 || halted.What != "topic t: it is wrong" || !strings.HasPrefix(halted.Hint, "MEND IT") {
		t.Errorf("a lasting violation gives %+v", halted)
	}
	if err := u.HaltIfLasting(mended, 3, 0); !errors.Is(err, error(mended)) {
		t.Errorf("what setup mends gives %v", err)
	}
	if err := u.HaltIfLasting(nil, 3, time.Hour); err != nil || u.Name != "" {
		t.Errorf("met again: %v, %q is remembered", err, u.Name)
	}
}
