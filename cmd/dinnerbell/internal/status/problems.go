package status

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"dinnerbell/cdc"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/stream"
)

// Level is how bad a problem is.
type Level string

// The levels, the worst first.
const (
	LevelHalted  Level = "halted"  // a part stays where it is until an operator has acted
	LevelDown    Level = "down"    // campaigns wait; the daemon tries again by itself
	LevelWarning Level = "warning" // it will hurt later, or something waits for an operator
	LevelWork    Level = "work"    // the daemon is busy, as it should be
)

var levelOrder = []Level{LevelHalted, LevelDown, LevelWarning, LevelWork}

// Problem is one reason why not all is well, with the command that mends it.
type Problem struct {
	Part  string    `json:"part"` // source, stream, lane 3, state, campaigns, clock
	Level Level     `json:"level"`
	What  string    `json:"what"`  // what happened, and to what
	Since time.Time `json:"since"` // when the daemon saw it first
	Mend  string    `json:"mend"`  // what mends it, commands and statements in backquotes; or that nothing is to be done
}

// Site names the systems around the daemon, for the commands that mend problems.
type Site struct {
	Source, Sink string // host:port of each Postgres
	Brokers      string // host:port, comma-separated
	StateDir     string
}

const (
	// lowSafeBytes is how little WAL may be left before the slot is lost without a warning.
	lowSafeBytes = 256 << 20
	// largeClockSkew is how far this machine's clock may be off.
	largeClockSkew = time.Second
)

// FindProblems lists the problems of a report, the worst first; Since is not set.
func FindProblems(r *Report, site Site) []Problem {
	list := slices.Concat(stateProblems(r, site), sourceProblems(r, site), laneProblems(r, site), heldProblems(r))
	if skew := time.Duration(r.ClockSkewMS * float64(time.Millisecond)); skew.Abs() >= largeClockSkew {
		list = append(list, Problem{Part: "clock", Level: LevelWarning, What: fmt.Sprintf("the clock of this machine was %s off Postgres' at the start; campaigns start and end by it", skew.Round(time.Millisecond)),
			Mend: "`timedatectl set-ntp true`"})
	}
	slices.SortStableFunc(list, func(a, b Problem) int {
		return cmp.Compare(slices.Index(levelOrder, a.Level), slices.Index(levelOrder, b.Level))
	})
	return list
}

// stateProblems lists those of the local state.
func stateProblems(r *Report, site Site) []Problem {
	switch r.State.Condition {
	case DiskFull:
		return []Problem{{Part: "state", Level: LevelDown,
			What: fmt.Sprintf("the disk of state.dir is full: %s are free and %s are kept in reserve; changes of the subscriptions wait, and so do campaigns that need them", terminal.Bytes(r.State.FreeBytes), terminal.Bytes(r.State.ReserveBytes)),
			Mend: "make room on the disk (`df -h " + site.StateDir + "`); it goes on by itself"}}
	case Rebuilding:
		return []Problem{{Part: "state", Level: LevelDown, What: "the local state was damaged and is being rebuilt from Postgres; campaigns wait: " + r.State.Damage,
			Mend: "nothing to do: it goes on by itself. The damaged state is in " + cmp.Or(r.State.Quarantine, "a folder beside it") + "; check that disk (`dmesg`, `smartctl`)"}}
	}
	if r.Checkpoint.LastError != "" {
		return []Problem{{Part: "state", Level: LevelWarning, What: "the last checkpoint failed, so Postgres keeps more WAL: " + r.Checkpoint.LastError, Mend: "`dinnerbell checkpoint create`"}}
	}
	return nil
}

// sourceProblems lists those of the mirror of the subscriptions.
func sourceProblems(r *Report, site Site) []Problem {
	s := &r.Source
	var list []Problem
	if h := r.Halted; h != nil && h.Part == "source" {
		list = append(list, Problem{Part: "source", Level: LevelHalted, What: h.What, Mend: h.Hint})
	}
	switch cdc.MirrorState(s.State) {
	case cdc.StateConnecting:
		p := Problem{Part: "source", Level: LevelDown, What: "the source's Postgres at " + site.Source + " does not answer; new campaigns wait for fresh subscriptions" + suffix(s.LastError),
			Mend: "`dinnerbell doctor` names the cause; start Postgres at " + site.Source + ", and it goes on by itself"}
		if s.LastError == "" {
			p.Level, p.What, p.Mend = LevelWork, "connecting to the source's Postgres at "+site.Source, "nothing to do: this takes a moment"
		}
		list = append(list, p)
	case cdc.StateSnapshot:
		what := fmt.Sprintf("the snapshot of the subscriptions is under way: %s rows", terminal.Thousands(s.SnapshotRows))
		if s.SnapshotTotal > 0 {
			what += fmt.Sprintf(" of about %s (%.0f %%), %s left", terminal.Thousands(s.SnapshotTotal), s.SnapshotPercent, (time.Duration(s.SnapshotSecondsLeft) * time.Second).String())
		}
		list = append(list, Problem{Part: "source", Level: LevelWork, What: what + "; campaigns wait for it", Mend: "nothing to do: it goes on by itself"})
	case cdc.StateCatchingUp:
		list = append(list, Problem{Part: "source", Level: LevelWork, What: fmt.Sprintf("catching up with the changes of the subscriptions: %s behind; campaigns wait for it", bytesText(s.LagBytes)), Mend: "nothing to do: it goes on by itself"})
	case cdc.StateWaiting:
		list = append(list, Problem{Part: "source", Level: LevelDown, What: "the mirror of the subscriptions waits" + suffix(s.LastError),
			Mend: "`SELECT slot_name, pid, application_name FROM pg_replication_slots JOIN pg_stat_activity ON pid = active_pid` names the holder of the slot: end it, or wait"})
	default:
	}
	if w := s.Work; w != nil {
		list = append(list, Problem{Part: "source", Level: LevelWork, What: fmt.Sprintf("%s under way: %s, %s of about %s rows", w.Kind, w.Stage, terminal.Thousands(w.Rows), terminal.Thousands(w.Total)), Mend: "nothing to do: campaigns go on"})
	}
	return append(list, slotProblems(s)...)
}

// bytesText returns an amount of WAL as text.
func bytesText(n *int64) string {
	if n == nil {
		return "an unknown amount of WAL"
	}
	return terminal.Bytes(*n) + " of WAL"
}

// slotProblems lists those of the replication slot.
func slotProblems(s *Source) []Problem {
	low := s.SlotSafeBytes != nil && *s.SlotSafeBytes < lowSafeBytes
	switch {
	case s.SlotWALStatus == "lost":
		return []Problem{{Part: "source", Level: LevelWarning, What: "Postgres has removed WAL that the slot needs", Mend: "`dinnerbell rebuild`"}}
	case s.SlotWALStatus == "unreserved", low:
		return []Problem{{Part: "source", Level: LevelWarning, What: fmt.Sprintf("the slot keeps %s and will soon be lost", bytesText(s.SlotHeldBytes)),
			Mend: "`ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf();`"}}
	}
	return nil
}

// laneProblems lists those of the lanes. Lanes with the same problem are one.
func laneProblems(r *Report, site Site) []Problem {
	if len(r.Lanes) == 0 {
		return noLaneProblems(r, site)
	}
	var list []Problem
	for i := range r.Lanes {
		p, ok := laneProblem(&r.Lanes[i], r, site)
		if !ok {
			continue
		}
		if at := slices.IndexFunc(list, func(o Problem) bool { return o.What == p.What && o.Level == p.Level }); at >= 0 {
			list[at].Part += ", " + strings.TrimPrefix(p.Part, "lane ")
			continue
		}
		list = append(list, p)
	}
	return list
}

func laneProblem(l *Lane, r *Report, site Site) (Problem, bool) {
	p := Problem{Part: fmt.Sprintf("lane %d", l.Partition), Level: LevelDown}
	switch {
	case l.State == string(stream.LaneHalted):
		p.Level, p.What, p.Mend = LevelHalted, cmp.Or(l.HaltedWhat, l.LastError), cmp.Or(l.HaltedHint, "`dinnerbell audit`")
	case l.State != string(stream.LaneRunning) && l.LastError == "":
		p.Level, p.What, p.Mend = LevelWork, "takes over: it reads how far both sinks are", "nothing to do: this takes a moment"
	case l.State != string(stream.LaneRunning):
		p.What, p.Mend = explainSinkError(l.LastError, site)
	case l.HeldByTransaction != "":
		p.What, p.Mend = l.HeldByTransaction, "`kafka-transactions.sh --bootstrap-server "+site.Brokers+" find-hanging --topic TOPIC` names its producer"
	case l.WaitingForFreshness && r.Source.State == string(cdc.StateStreaming):
		p.Level, p.What, p.Mend = LevelWork, "campaigns wait for fresh subscriptions", "nothing to do: the mirror is catching up"
	default:
		return p, false
	}
	return p, true
}

// noLaneProblems says why this daemon has no lane. Before the source has admitted the
// daemon, that is no problem of its own.
func noLaneProblems(r *Report, site Site) []Problem {
	for _, reason := range r.Reasons {
		text, ok := strings.CutPrefix(reason, "lanes: none owned")
		if !ok {
			continue
		}
		text = strings.TrimLeft(text, ":, ")
		if strings.HasPrefix(text, "other members") {
			return []Problem{{Part: "lanes", Level: LevelWarning, What: "this daemon stands by: " + text, Mend: "`dinnerbell setup`, if the campaigns topic is missing"}}
		}
		if strings.HasPrefix(text, "the group has not answered") {
			return []Problem{{Part: "lanes", Level: LevelWork, What: "no lane yet: the consumer group has not answered", Mend: "nothing to do for a minute; if it stays so: `dinnerbell doctor`"}}
		}
		what, mend := explainSinkError(text, site)
		return []Problem{{Part: "lanes", Level: LevelDown, What: what, Mend: mend}}
	}
	return nil
}

// explainSinkError tells from the text of an error which system the lanes wait for.
func explainSinkError(text string, site Site) (what, mend string) {
	lower := strings.ToLower(text)
	switch {
	case strings.Contains(lower, "kafka") || strings.Contains(lower, "broker") || strings.Contains(lower, "consumer group") || containsAny(text, site.Brokers):
		return "Kafka at " + site.Brokers + " does not answer as it should; campaigns wait" + suffix(text), "`dinnerbell doctor` names the cause; start the broker at " + site.Brokers + ", and it goes on by itself"
	case strings.Contains(lower, "postgres") || strings.Contains(lower, "sqlstate") || strings.Contains(lower, "sink") || containsAny(text, site.Sink):
		return "the sink's Postgres at " + site.Sink + " does not answer as it should; campaigns wait" + suffix(text), "`dinnerbell doctor` names the cause; start Postgres at " + site.Sink + ", and it goes on by itself"
	}
	return "campaigns wait" + suffix(text), "`dinnerbell doctor` names the cause"
}

// containsAny reports whether a text names one of the addresses.
func containsAny(text, addresses string) bool {
	return slices.ContainsFunc(strings.Split(addresses, ","), func(a string) bool { return a != "" && strings.Contains(text, a) })
}

// heldProblems lists the campaigns that wait for an operator.
func heldProblems(r *Report) []Problem {
	var list []Problem
	if n := r.Campaigns.Parked; n > 0 {
		list = append(list, Problem{Part: "campaigns", Level: LevelWarning, Mend: "`dinnerbell approve CAMPAIGN`",
			What: fmt.Sprintf("%s parked: the audience exceeds limits.max_audience (%s)", countCampaigns(n), terminal.Thousands(r.Limits.MaxAudience))})
	}
	if n := r.Campaigns.Paused; n > 0 {
		list = append(list, Problem{Part: "campaigns", Level: LevelWarning, Mend: "`dinnerbell resume CAMPAIGN`", What: countCampaigns(n) + " paused by an operator"})
	}
	return list
}

func countCampaigns(n int64) string {
	if n == 1 {
		return "one campaign is"
	}
	return terminal.Thousands(n) + " campaigns are"
}

func suffix(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

// ProblemClock remembers since when each problem lasts. Its zero value is ready.
type ProblemClock struct {
	mu    sync.Mutex
	since map[string]time.Time
}

// Stamp sets Since of each problem, and forgets those that are not listed any more. A
// problem is the same while its part and level are, and the beginning of its text.
func (c *ProblemClock) Stamp(now time.Time, list []Problem) {
	c.mu.Lock()
	defer c.mu.Unlock()
	still := make(map[string]time.Time, len(list))
	for i := range list {
		p := &list[i]
		key := p.Part + "\x00" + string(p.Level)
		since, ok := c.since[key]
		if !ok {
			since = now
		}
		if _, twice := still[key]; !twice {
			still[key] = since
		}
		p.Since = since.UTC()
	}
	c.since = still
}
