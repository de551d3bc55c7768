// Package capacity calculates the needs of a workload from unit costs that `make
// bench` measures. It is arithmetic alone, without clock or network.
package capacity

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// Units are measured costs. CPU is in seconds of one core per million, sizes are
// in bytes for one.
type Units struct {
	Machine  string  `json:"machine"`  // where they were measured, for people
	Measured string  `json:"measured"` // date
	Cores    float64 `json:"cores"`    // of that machine, on which everything ran

	// Notification is one notification of a large campaign, Scattered what each
	// costs on top where audiences are 100 or less: their entries in the unique
	// index lie apart. Campaign is what each campaign costs on top, whatever its
	// audience.
	Notification Cost `json:"notification"`
	Scattered    Cost `json:"scattered"`
	Campaign     Cost `json:"campaign"`
	// Texts is the length of content, owner and contact together in the
	// campaigns that were measured: sizes of a notification grow with them.
	Texts float64 `json:"texts"`
	// LaneRate is how many notifications a second one lane decides at best: its
	// transactions follow one another.
	LaneRate float64 `json:"lane_rate"`

	Change       Cost         `json:"change"` // of one subscription, one change a transaction
	ChangeRate   float64      `json:"change_rate"`
	Subscription Subscription `json:"subscription"`
}

// Cost is the cost of one notification, campaign or change.
type Cost struct {
	Daemon   float64 `json:"daemon"`   // CPU of the daemon
	Postgres float64 `json:"postgres"` // CPU of Postgres: the sink's, for a change the source's walsender
	Broker   float64 `json:"broker"`   // CPU of the Kafka broker, one replica
	WAL      float64 `json:"wal"`      // bytes of Postgres' log
	Table    float64 `json:"table"`    // bytes of table and index that stay
	Kafka    float64 `json:"kafka"`    // bytes of the output topic, one replica
}

// Subscription is the cost of one subscription.
type Subscription struct {
	Disk        float64 `json:"disk"`         // bytes in state.dir
	RebuildRate float64 `json:"rebuild_rate"` // subscriptions a second, Postgres on the same machine
	Memory      float64 `json:"memory"`       // bytes of the daemon at its peak, in all: they do not grow with the table
}

//go:embed units.json
var builtIn []byte

// Default are the unit costs of docs/capacity.md.
func Default() (Units, error) { return parseUnits(builtIn, "built-in unit costs") }

// Read reads the units that the benchmark wrote to build/units.json.
func Read(path string) (Units, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Units{}, fmt.Errorf("read unit costs: %w; `make bench` writes them to build/units.json", err)
	}
	return parseUnits(text, path)
}

func parseUnits(text []byte, from string) (Units, error) {
	var u Units
	if err := json.Unmarshal(text, &u); err != nil {
		return u, fmt.Errorf("read unit costs of %s: %w", from, err)
	}
	if u.Cores <= 0 || u.LaneRate <= 0 || u.ChangeRate <= 0 || u.Subscription.RebuildRate <= 0 ||
		u.Notification.Daemon <= 0 || u.Notification.Postgres <= 0 || u.Notification.WAL <= 0 || u.Subscription.Disk <= 0 {
		return u, fmt.Errorf("read unit costs of %s: %w", from, errIncomplete)
	}
	return u, nil
}

var errIncomplete = errors.New("a cost is missing or not above zero")

// scatteredAt is the largest audience whose index entries lie apart.
const scatteredAt = 100

// costPerNotification returns the cost of one notification for campaigns with a
// given audience and texts of a given length.
func (u *Units) costPerNotification(audience, texts float64) Cost {
	n, s, c := u.Notification, u.Scattered, u.Campaign
	apart := min(1, scatteredAt/audience)
	more := texts - u.Texts
	sum := func(n, s, c float64) float64 { return n + s*apart + c/audience }
	return Cost{
		Daemon:   sum(n.Daemon, s.Daemon, c.Daemon),
		Postgres: sum(n.Postgres, s.Postgres, c.Postgres),
		Broker:   sum(n.Broker, s.Broker, c.Broker),
		WAL:      sum(max(0, n.WAL+more), s.WAL, c.WAL),
		Table:    sum(max(0, n.Table+more), s.Table, c.Table),
		Kafka:    sum(max(0, n.Kafka+more), s.Kafka, c.Kafka),
	}
}
