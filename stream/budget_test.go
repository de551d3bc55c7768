package stream

import (
	"testing"

	"dinnerbell/internal/budget"
	"dinnerbell/state/id"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
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
		var picks []*clientPick
		for n := range c.campaigns {
			list := &id.List{}
			for _, text := range all[n*c.clients : (n+1)*c.clients] {
				list.Append(packID(t, text))
			}
			picks = append(picks, &clientPick{live: &liveCampaign{Campaign: example()}, clients: list})
		}
		var buffer []byte
		out := &recordBuffers{}
		build := func() {
			st := newStep(sink.ContractTable())
			st.picks, st.copyData = append(st.picks, picks...), buffer
			st.sealStep(7)
			buffer = st.copyData
			p := st.buildPayload()
			p.Encode()
			out.prepareRecords([]*record.Payload{p}, p.RecordBytes(), 8<<20)
			for i := range p.Segments {
				for j := range p.Segments[i].Clients.Len() {
					out.arena, _, _ = p.Segments[i].Render().AppendRecord(out.arena, p.Segments[i].Clients.At(j))
				}
			}
		}
		build()
		budget.Check(t, c.budget, testing.AllocsPerRun(20, build))
	}
}
