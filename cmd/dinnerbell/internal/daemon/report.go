package daemon

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/logging"
	"dinnerbell/cmd/dinnerbell/internal/status"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/internal/postgres"
)

// siteOf names the systems around the daemon, without users and passwords.
func siteOf(cfg *config.Config) status.Site {
	address := func(reveal func() (string, error)) string {
		url, err := reveal() // Validate has tried it
		if err != nil {
			return ""
		}
		parsed, err := postgres.Parse(url)
		if err != nil {
			return ""
		}
		return net.JoinHostPort(parsed.Host, strconv.Itoa(int(parsed.Port)))
	}
	return status.Site{Source: address(cfg.SourceURL), Sink: address(cfg.SinkURL), Brokers: strings.Join(cfg.Kafka.Brokers, ","), StateDir: cfg.State.Dir}
}

// statusReport returns the daemon's status. It is cheap and may be called at any
// time.
func (s *supervisor) statusReport() status.Report {
	e := s.currentEngine()
	_, complete := e.Store.Source()
	source, lanes := e.Mirror.Status(), e.Service.Status()
	e.before.addTo(&source, &lanes)
	r := status.NewReport(s.Build.Version, source, lanes, complete)
	s.reportState(&r, e, complete)
	r.Reasons = append(r.Reasons, s.stalls.Reasons(time.Now(), &r)...)
	if s.stopping.Load() {
		r.SetStopping()
	}
	r.Ready = len(r.Reasons) == 0
	r.Problems = status.FindProblems(&r, s.site)
	s.problems.Stamp(time.Now(), r.Problems)
	r.RewriteStrings(s.Config.Hide)
	r.SetEvents(logging.Events(s.Logger))
	return r
}

// reportState adds the local state to a report, and the reasons and conditions that
// follow from it.
func (s *supervisor) reportState(r *status.Report, e *Engine, complete bool) {
	r.State.Quarantines, r.State.SizeBytes = s.damage.count(), e.Store.Size()
	if disk, ok := e.Store.Disk(); ok {
		r.State.FreeBytes, r.State.ReserveBytes = disk.Free, disk.Reserve
		if disk.Short() {
			r.State.Condition = status.DiskFull
			r.Reasons = append(r.Reasons, fmt.Sprintf("state: the disk is almost full: %s are free in %s%s and %s are kept in reserve (state.reserve); changes of the subscriptions wait until there is room",
				terminal.Bytes(disk.Free), s.Config.State.Dir, filesystemOf(s.Config.State.Dir), terminal.Bytes(disk.Reserve)))
		}
	}
	aside, was := e.Store.SetAside()
	if was {
		r.State.Quarantine, r.State.Damage = aside.Dir, logging.Line(aside.Reason)
		if !complete {
			r.State.Condition = status.Rebuilding
			r.Reasons = append(r.Reasons, fmt.Sprintf("state: rebuilding: the local state was damaged and set aside to %s: %s", aside.Dir, r.State.Damage))
		}
	}
	if err := e.Store.Damage(); err != nil {
		// The mirror has stopped because of the damage. That is no halt: a new
		// engine follows.
		r.State.Condition, r.State.Damage = status.Rebuilding, logging.Line(err.Error())
		r.Source.State, r.Halted = status.Rebuilding, nil
		r.Reasons = append(r.Reasons, "state: rebuilding: the local state is damaged and is being set aside: "+r.State.Damage)
	}
}
