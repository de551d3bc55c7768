package stream

import (
	"log/slog"
	"testing"
)

// What a question found is no news once the lanes run again: the daemon would be unready until
// the next one.
func TestUnreachedSystemsAreForgottenWithTheTrouble(t *testing.T) {
	t.Parallel()
	var cfg Config
	cfg.Logger = slog.New(slog.DiscardHandler)
	svc := New(cfg, nil, nil)
	svc.assigned, svc.lastError, svc.unreached = true, "unable to dial", Unreached{Kafka: "unable to dial"}
	if st := svc.Status(); st.Unreached.Kafka == "" {
		t.Error("Kafka is not named while it holds the lanes up")
	}
	svc.lastError = ""
	if st := svc.Status(); st.Unreached != (Unreached{}) {
		t.Errorf("%+v", st.Unreached)
	}
}
