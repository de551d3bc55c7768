package stream

import (
	"fmt"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// A sink that answers no more, without closing anything: the lane reports it and
// takes over again, instead of waiting for ever.
func TestSilentSinkIsNoticed(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a", "b"}})
	r := envtest.RelayPostgres(t, w.db, false)
	through := r.URL(w.db.URL)
	w.cfg.Sink.URL = func() (string, error) { return through, nil }
	w.cfg.SinkTimeout = time.Second
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	w.expect(map[string][]string{"c1": {"a", "b"}})

	r.Mute()
	w.produce(0, encodeCampaign(w.campaign("c2", "r1")))
	envtest.Until(t, patience, func() error {
		if s := svc.Status(); s.Ready() || s.Lanes[0].LastError == "" {
			return fmt.Errorf("the lane does not notice: %+v", s.Lanes)
		}
		return nil
	})
	r.Resume()
	w.expect(map[string][]string{"c1": {"a", "b"}, "c2": {"a", "b"}})
}
