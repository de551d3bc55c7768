package stream

import (
	"testing"

	"dinnerbell/internal/budget"
	"dinnerbell/state/id"
)

// What a step allocates between the join and the sockets: it is sealed, its
// outbox row is encoded and its records are rendered, in the memory of the step
// before.
func TestStepAllocations(t *testing.T) {
	for _, c := range []struct {
		budget             string
		campaigns, clients int
	}{
		{"allocs_step", 1, 2000},
		{"allocs_small_step", 200, 10},
	} {
		all := uuids(c.campaigns * c.clients)
		var picks []*pick
		for n := range c.campaigns {
			list := &id.List{}
			for _, text := range all[n*c.clients : (n+1)*c.clients] {
				list.Append(packID(t, text))
			}
			picks = append(picks, &pick{live: &live{Campaign: example()}, clients: list})
		}
		var buffer []byte
		out := &outbound{}
		build := func() {
			st := newStep(contractTable())
			st.picks, st.copyData = append(st.picks, picks...), buffer
			st.seal(7)
			buffer = st.copyData
			p := st.payload()
			p.encode()
			out.reset([]*payload{p}, p.size(), 8<<20)
			for i := range p.segments {
				for j := range p.segments[i].clients.Len() {
					out.arena, _, _ = p.segments[i].rendered().appendRecord(out.arena, p.segments[i].clients.At(j))
				}
			}
		}
		build()
		budget.Check(t, c.budget, testing.AllocsPerRun(20, build))
	}
}
