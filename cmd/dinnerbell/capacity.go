package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/capacity"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
)

// capacityCmd calculates the needs of a workload. It reads no configuration and
// asks no server.
type capacityCmd struct {
	Subscriptions float64 `default:"10e6" placeholder:"N" help:"Rows of the source table (${default})."`
	Notifications float64 `name:"notifications-per-second" default:"100e3" placeholder:"N" help:"Notifications a second at the peak (${default})."`
	Changes       float64 `name:"changes-per-second" default:"1000" placeholder:"N" help:"Subscription changes a second (${default})."`
	Audience      float64 `default:"1000" placeholder:"N" help:"Mean audience of a campaign (${default})."`
	Texts         float64 `placeholder:"BYTES" help:"Length of a campaign's content, owner and contact together (default: as measured)."`

	Cores       float64 `default:"16" placeholder:"N" help:"Cores of each server (${default})."`
	WAL         float64 `name:"wal-bandwidth" default:"400e6" placeholder:"B/S" help:"Bytes a second that the disk of Postgres' WAL takes (${default})."`
	Network     float64 `default:"1.25e9" placeholder:"B/S" help:"Bytes a second of each server's network (${default}, 10 Gbit/s)."`
	Replication float64 `default:"3" placeholder:"N" help:"Copies that Kafka keeps (${default})."`
	Use         float64 `default:"0.7" placeholder:"SHARE" help:"Share of a server to plan for (${default})."`

	OneMachine float64 `placeholder:"LANES" help:"Instead, print how many notifications a second LANES lanes carry if Postgres, Kafka and the daemon share one machine with the cores of the measurement."`

	Units string `type:"existingfile" placeholder:"FILE" help:"Unit costs measured by 'make bench' (default: those of docs/capacity.md)."`
	JSON  bool   `help:"As JSON."`
}

// Validate implements kong's check of a command line.
func (c *capacityCmd) Validate() error {
	for name, v := range map[string]float64{
		"--subscriptions": c.Subscriptions, "--notifications-per-second": c.Notifications, "--audience": c.Audience,
		"--cores": c.Cores, "--wal-bandwidth": c.WAL, "--network": c.Network, "--replication": c.Replication,
	} {
		if !(v > 0) { // NaN is not above zero either
			return fmt.Errorf("%s must be above zero", name)
		}
	}
	if !(c.Use > 0 && c.Use <= 1) {
		return fmt.Errorf("--use must be above 0 and at most 1")
	}
	if !(c.Changes >= 0 && c.Texts >= 0 && c.OneMachine >= 0) {
		return fmt.Errorf("--changes-per-second, --texts and --one-machine must not be below zero")
	}
	return nil
}

// Help shows how it is used.
func (*capacityCmd) Help() string {
	return `Example:
  dinnerbell capacity --subscriptions 1e8`
}

// Run prints the plan.
func (c *capacityCmd) Run(_ context.Context, a *invocation) error {
	units, err := capacity.Default()
	if c.Units != "" {
		units, err = capacity.Read(c.Units)
	}
	if err != nil {
		return err
	}
	load := capacity.Workload{Subscriptions: c.Subscriptions, Notifications: c.Notifications, Changes: c.Changes, Audience: c.Audience, Texts: c.Texts}
	if c.OneMachine > 0 {
		_, err := fmt.Fprintf(a.stdout, "%.0f\n", capacity.OneMachine(units, load, units.Cores, c.OneMachine))
		return err
	}
	plan := capacity.Make(units, load, capacity.Hardware{Cores: c.Cores, WAL: c.WAL, Network: c.Network, Replication: c.Replication, Use: c.Use})
	if c.JSON {
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(plan)
	}
	return printPlan(a.stdout, &units, &plan)
}

// printPlan writes the plan as text: the need of each resource, then the sums.
func printPlan(out io.Writer, u *capacity.Units, p *capacity.Plan) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(w, "resource\tneeded\tone gives\tcount\t \t\n") // Flush reports errors
	for _, n := range p.Needs {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%.0f\t%s\t\n", n.Resource, formatAmount(n.Demand, n.Unit), formatAmount(n.One, n.Unit), n.Count, n.Of)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write plan: %w", err)
	}
	_, err := fmt.Fprintf(out, `
lanes (partitions of the campaigns topic)  %.0f
sinks (Postgres servers for feedback)      %.0f, each with a deployment and a campaigns topic of its own
daemons, and slots at the source           %.0f; all walsenders together use %.2f cores of the source
brokers                                    %.0f
each daemon's state.dir                    %s, up to %s during a rebuild, which takes %s
each daemon's memory                       %s
an hour at this rate adds                  %s to the feedback tables and their indexes
used up first                              %s

Unit costs: %s, %s.
`, p.Lanes, p.Sinks, p.Daemons, p.SourceCPU, p.Brokers,
		terminal.Bytes(int64(p.StateBytes)), terminal.Bytes(int64(p.RebuildBytes)), time.Duration(p.RebuildSeconds*float64(time.Second)).Round(time.Second),
		terminal.Bytes(int64(p.MemoryBytes)), terminal.Bytes(int64(p.FeedbackHour)), p.First, u.Machine, u.Measured)
	return err
}

func formatAmount(v float64, unit string) string {
	switch {
	case v == 0:
		return "-"
	case unit == "B/s":
		return terminal.Bytes(int64(v)) + "/s"
	case unit == "cores":
		return fmt.Sprintf("%.1f cores", v)
	}
	return terminal.Thousands(int64(v)) + " " + unit
}
