package capacity

import (
	"os"
	"path/filepath"
	"testing"
)

// round figures, so that the sums can be done by hand.
var units = Units{
	Machine: "paper", Cores: 2, Texts: 50, LaneRate: 100_000,
	Notification: Cost{Daemon: 2, Postgres: 6, Broker: 1, WAL: 400, Table: 300, Kafka: 500},
	Campaign:     Cost{Daemon: 100, Postgres: 600, Broker: 50, WAL: 2000, Table: 100, Kafka: 100},
	Change:       Cost{Daemon: 10, Postgres: 20}, ChangeRate: 50_000,
	Subscription: Subscription{Disk: 50, RebuildRate: 1_000_000, Memory: 1e8},
}

var hardware = Hardware{Cores: 10, WAL: 400e6, Network: 1e9, Replication: 3, Use: 0.5}

func TestPlan(t *testing.T) {
	p := Make(units, Workload{Subscriptions: 1e9, Notifications: 0.99e6, Changes: 10_000, Audience: 1e9}, hardware)
	for name, c := range map[string]struct{ got, want float64 }{
		"lanes":            {p.Lanes, 20},                                   // 0.99 M/s ÷ 50 k/s
		"sinks":            {p.Sinks, 2},                                    // 396 MB/s of WAL ÷ 200 MB/s; 5.9 cores ÷ 5
		"daemons":          {p.Daemons, 2},                                  // one for each sink; 792 MB/s ÷ 500 MB/s
		"brokers":          {p.Brokers, 3},                                  // 1.49 GB/s ÷ 500 MB/s
		"slots":            {p.Slots, 2},                                    // one for each daemon
		"state":            {p.StateBytes / 1e9, 50},                        // 50 B × 1 billion
		"rebuild":          {p.RebuildSeconds, 1000},                        // 1 billion ÷ 1 M/s
		"feedback an hour": {p.FeedbackHour / 1e9, 3600 * 300 * 0.99 / 1e3}, // 300 B × 0.99 M/s
		"walsenders":       {p.SourceCPU, 0.4},                              // 2 × 10 k/s × 20 s/M
	} {
		if diff := c.got - c.want; diff > 1e-3 || diff < -1e-3 {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
	if p.First != "a lane's transactions" {
		t.Errorf("used up first: %s", p.First)
	}
}

// Small audiences and long texts cost more; nothing gets cheaper by more work.
func TestCostsGrow(t *testing.T) {
	base := Workload{Subscriptions: 1e6, Notifications: 1e5, Changes: 100, Audience: 1000}
	for name, more := range map[string]func(*Workload){
		"smaller audiences": func(w *Workload) { w.Audience = 10 },
		"longer texts":      func(w *Workload) { w.Texts = 5000 },
		"more":              func(w *Workload) { w.Notifications *= 10 },
	} {
		w := base
		more(&w)
		a, b := Make(units, base, hardware), Make(units, w, hardware)
		grew := false
		for i := range a.Needs {
			if a.Needs[i].Count > b.Needs[i].Count {
				t.Errorf("%s: %s fell from %v to %v", name, a.Needs[i].Resource, a.Needs[i].Count, b.Needs[i].Count)
			}
			grew = grew || b.Needs[i].Demand > a.Needs[i].Demand
		}
		if !grew {
			t.Errorf("%s: nothing grew", name)
		}
	}
}

func TestOneMachine(t *testing.T) {
	large, ten := Workload{Audience: 1e9}, Workload{Audience: 10}
	for _, c := range []struct {
		w           Workload
		lanes, want float64
	}{
		{large, 1, 100_000},                       // the lane: 100 k/s
		{large, 4, usable * 2e6 / 9},              // two cores ÷ 9 s per million
		{ten, 1, usable * 2e6 / (12. + 66. + 6.)}, // the cores: 12 + 66 + 6 s; the lane would do 9,090
	} {
		want := c.want
		if c.w == ten {
			want = min(want, 100_000*6/66.)
		}
		if got := OneMachine(units, c.w, 2, c.lanes); got < want-1 || got > want+1 {
			t.Errorf("%v lanes, audience %v: %v, want %v", c.lanes, c.w.Audience, got, want)
		}
	}
}

// Index entries of small audiences lie apart, those of large ones less and less.
func TestScattered(t *testing.T) {
	u := units
	u.Scattered = Cost{Postgres: 2}
	for audience, want := range map[float64]float64{10: 6 + 2 + 60, 100: 6 + 2 + 6, 1000: 6 + 0.2 + 0.6} {
		if got := u.costPerNotification(audience, u.Texts).Postgres; got < want-1e-9 || got > want+1e-9 {
			t.Errorf("audience %v: %v, want %v", audience, got, want)
		}
	}
}

func TestUnits(t *testing.T) {
	if _, err := Default(); err != nil {
		t.Error(err)
	}
	if _, err := Read(filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Error("a file that is not there was read")
	}
	for _, text := range []string{"", "[]", "{}", `{"cores": 2}`} {
		path := filepath.Join(t.TempDir(), "units.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}
