package takeover

import (
	"errors"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/precondition"
)

// A violation halts only once it has lasted, and one that setup mends never does.
func TestViolationHaltsOnceItHasLasted(t *testing.T) {
	t.Parallel()
	lasting := &precondition.UnmetError{Finding: precondition.Finding{Name: "kafka.other", Object: "topic t", Found: "it is wrong", Fix: "MEND IT"}}
	mended := &precondition.UnmetError{Finding: precondition.Finding{Name: "kafka.topics", Object: "topic t", Found: "it is missing", Fix: "dinnerbell setup"}}
	var u ViolationWatch
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
	if err := u.HaltIfLasting(nil, 3, time.Hour); err != nil || u.name != "" {
		t.Errorf("met again: %v, %q is remembered", err, u.name)
	}
}
