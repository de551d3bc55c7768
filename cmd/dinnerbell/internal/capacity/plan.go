package capacity

import (
	"cmp"
	"math"
)

// Workload is the load to plan for.
type Workload struct {
	Subscriptions float64 `json:"subscriptions"`
	Notifications float64 `json:"notifications_per_second"` // at the peak
	Changes       float64 `json:"changes_per_second"`       // of subscriptions
	Audience      float64 `json:"audience"`                 // of a campaign, mean
	Texts         float64 `json:"texts"`                    // bytes of content, owner and contact; 0: as measured
}

// Hardware is the capacity of one server.
type Hardware struct {
	Cores       float64 `json:"cores"`       // of each daemon's, Postgres' and broker's machine
	WAL         float64 `json:"wal"`         // bytes a second that Postgres' log disk takes
	Network     float64 `json:"network"`     // bytes a second of each machine
	Replication float64 `json:"replication"` // copies that Kafka keeps
	Use         float64 `json:"use"`         // share of a server that is planned for, 0 to 1
}

// Need is one line of a plan: the need of one resource.
type Need struct {
	Resource string  `json:"resource"`
	Demand   float64 `json:"demand"`
	One      float64 `json:"one"`  // what one of Of gives, at the planned use; 0: no limit is known
	Unit     string  `json:"unit"` // of Demand and One
	Of       string  `json:"of"`   // the counted units: lanes, sinks, …
	Count    float64 `json:"count"`
}

// Plan is the needs of a workload.
type Plan struct {
	Workload Workload `json:"workload"`
	Hardware Hardware `json:"hardware"`
	Needs    []Need   `json:"needs"`
	Lanes    float64  `json:"lanes"`
	Sinks    float64  `json:"sinks"` // Postgres servers for feedback, each with its own deployment
	Daemons  float64  `json:"daemons"`
	Slots    float64  `json:"slots"`
	Brokers  float64  `json:"brokers"`
	// First is the resource whose single unit is used up first.
	First string `json:"first"`

	StateBytes     float64 `json:"state_bytes"`      // state.dir of each daemon
	RebuildBytes   float64 `json:"rebuild_bytes"`    // while a rebuild fills a second generation
	RebuildSeconds float64 `json:"rebuild_seconds"`  // of each daemon
	FeedbackHour   float64 `json:"feedback_hour"`    // bytes of the feedback table and its index that an hour at this rate adds
	MemoryBytes    float64 `json:"memory_bytes"`     // of each daemon
	SourceCPU      float64 `json:"source_cpu_cores"` // cores that all walsenders use
}

// Make calculates the plan of a workload.
func Make(u Units, w Workload, h Hardware) Plan {
	if w.Texts == 0 {
		w.Texts = u.Texts
	}
	c, million := u.costPerNotification(w.Audience, w.Texts), w.Notifications/1e6
	p := Plan{Workload: w, Hardware: h}
	need := func(resource, of, unit string, demand, one float64) float64 {
		n := Need{Resource: resource, Demand: demand, One: one * h.Use, Unit: unit, Of: of, Count: 1}
		if n.One > 0 {
			n.Count = max(1, math.Ceil(demand/n.One))
		}
		p.Needs = append(p.Needs, n)
		return n.Count
	}
	// A lane's rate is bound by its Postgres backend, so it falls as that costs more.
	p.Lanes = need("a lane's transactions", "lanes", "notifications/s", w.Notifications, u.LaneRate*u.Notification.Postgres/c.Postgres)
	p.Sinks = max(
		need("sink: CPU", "sinks", "cores", million*c.Postgres, h.Cores),
		need("sink: WAL", "sinks", "B/s", w.Notifications*c.WAL, h.WAL),
		need("sink: network", "sinks", "B/s", w.Notifications*c.Table, h.Network))
	p.Daemons = max(p.Sinks,
		need("daemon: CPU", "daemons", "cores", million*c.Daemon, h.Cores),
		need("daemon: network", "daemons", "B/s", w.Notifications*(c.Table+c.Kafka), h.Network))
	p.Brokers = max(h.Replication,
		need("broker: CPU", "brokers", "cores", million*c.Broker*h.Replication, h.Cores),
		need("broker: network", "brokers", "B/s", w.Notifications*c.Kafka*h.Replication, h.Network))
	need("mirror: changes", "per slot", "changes/s", w.Changes, u.ChangeRate)
	p.Slots = p.Daemons
	p.SourceCPU = p.Slots * w.Changes / 1e6 * u.Change.Postgres
	p.StateBytes = w.Subscriptions * u.Subscription.Disk
	p.RebuildBytes = 3 * p.StateBytes // the served one, the sorted runs, the new one
	p.RebuildSeconds = w.Subscriptions / u.Subscription.RebuildRate
	p.FeedbackHour = 3600 * w.Notifications * c.Table
	p.MemoryBytes = u.Subscription.Memory
	p.First = p.tightestResource()
	return p
}

// tightestResource returns the resource whose used share of one unit is largest.
func (p *Plan) tightestResource() string {
	var most Need
	for _, n := range p.Needs {
		if n.One > 0 && (most.One == 0 || cmp.Compare(n.Demand/n.One, most.Demand/most.One) > 0) {
			most = n
		}
	}
	return most.Resource
}

// usable is the share of a machine's cores that daemon, Postgres and broker reach
// alone on it, because they wait for each other and for the disk. Measured with two
// lanes on two cores: 0.81 to 0.87.
const usable = 0.85

// OneMachine returns how many notifications a second a number of lanes carry if
// daemon, Postgres and broker share the cores of one machine, as in the benchmark:
// either the lanes' transactions or the cores are the limit.
func OneMachine(u Units, w Workload, cores, lanes float64) float64 {
	if w.Texts == 0 {
		w.Texts = u.Texts
	}
	c := u.costPerNotification(w.Audience, w.Texts)
	perLane := u.LaneRate * u.Notification.Postgres / c.Postgres
	return min(lanes*perLane, usable*cores*1e6/(c.Daemon+c.Postgres+c.Broker))
}
