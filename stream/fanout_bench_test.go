package stream

import (
	"fmt"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// BenchmarkFanOut is the whole lane on real servers: join, both sinks, one
// campaign of a large audience. It is for profiles (-cpuprofile); `make bench`
// measures.
func BenchmarkFanOut(b *testing.B) {
	const audience = 200_000
	w := newDeployment(b, 1, map[string][]string{"r": uuids(audience)})
	w.cfg.Logger = nil
	svc, _ := w.start()
	round := 0
	b.ReportAllocs()
	for b.Loop() {
		round++
		w.produce(0, encodeCampaign(w.campaign(fmt.Sprint(round), "r")))
		envtest.Until(b, patience, func() error {
			if n := svc.Status().Notifications.Shipped; n < int64(round)*audience {
				return fmt.Errorf("%d shipped", n)
			}
			return nil
		})
	}
	b.ReportMetric(float64(audience)*float64(b.N)/b.Elapsed().Seconds(), "notifications/s")
}

// uuids are n distinct ids, spread over the space as random ones are.
func uuids(n int) []string {
	out := make([]string, n)
	for i := range out {
		x := uint64(i) * 0x9e3779b97f4a7c15
		out[i] = fmt.Sprintf("%08x-%04x-4%03x-9%03x-%012x", uint32(x>>32), uint16(x>>16), x&0xfff, i&0xfff, i)
	}
	return out
}
