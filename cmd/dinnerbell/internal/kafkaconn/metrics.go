package kafkaconn

import (
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kprom"
)

// ClientMetrics counts the work of all Kafka clients of the process together: the lanes'
// producers and readers and the member of the group come and go, and a counter must not
// fall. It is a hook of the clients and a collector. The labels are brokers, and topics
// that the daemon writes or reads.
//
// kprom makes its metrics when a client is made, for that client; ClientMetrics lets it
// do so once. What kprom reads from that one client, the buffered records, is left out.
type ClientMetrics struct {
	*kprom.Metrics

	once sync.Once
	made atomic.Bool
}

// NewClientMetrics returns metrics without a client.
func NewClientMetrics() *ClientMetrics {
	return &ClientMetrics{Metrics: kprom.NewMetrics("dinnerbell", kprom.Subsystem("kafka"), kprom.Registry(nil))}
}

// OnNewClient implements kgo.HookNewClient.
func (m *ClientMetrics) OnNewClient(client *kgo.Client) {
	m.once.Do(func() { m.Metrics.OnNewClient(client); m.made.Store(true) })
}

// OnClientClosed implements kgo.HookClientClosed.
func (*ClientMetrics) OnClientClosed(*kgo.Client) {}

// Describe sends nothing: there are no metrics before the first client.
func (*ClientMetrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m *ClientMetrics) Collect(out chan<- prometheus.Metric) {
	if !m.made.Load() {
		return
	}
	all := make(chan prometheus.Metric, 64)
	go func() { defer close(all); m.Metrics.Collect(all) }()
	for metric := range all {
		if name, _, _ := strings.Cut(metric.Desc().String(), ", help:"); !strings.Contains(name, "_buffered_") {
			out <- metric
		}
	}
}
