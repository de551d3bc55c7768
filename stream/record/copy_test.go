package record

import (
	"testing"

	"dinnerbell/state/id"
)

// The data of one step is framed without an allocation beyond its buffer, and the next
// step uses the buffer again.
func TestCopyFramesReuseTheirBuffer(t *testing.T) {
	list := &id.List{}
	for _, c := range uuids(2000) {
		list.Append(packID(t, c))
	}
	w := ContractKinds.NewTemplate(example(), 7)
	size := list.Len() * (len(w.copyHead) + 4 + 36)
	var buf []byte
	encode := func() {
		var f CopyStream
		f.Begin(buf, size)
		f.Add(w, list)
		buf = f.End()
	}
	encode()
	if n := testing.AllocsPerRun(10, encode); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkEncodeCopy measures the COPY data of one step of 2,000 clients.
func BenchmarkEncodeCopy(b *testing.B) {
	list := &id.List{}
	for _, c := range uuids(2000) {
		list.Append(packID(b, c))
	}
	w := ContractKinds.NewTemplate(example(), 7)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		var f CopyStream
		f.Begin(buf, 0)
		f.Add(w, list)
		buf = f.End()
	}
	b.SetBytes(int64(len(buf)))
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/2000, "ns/client")
}

// BenchmarkRenderCampaign measures the part of a campaign that is rendered once per step.
func BenchmarkRenderCampaign(b *testing.B) {
	c := example()
	b.ReportAllocs()
	for b.Loop() {
		ContractKinds.NewTemplate(c, 7)
	}
}
