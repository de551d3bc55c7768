package status

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"dinnerbell/cdc"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/internal/precondition"
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
	Part  string    `json:"part"` // source, stream, lane 3, lanes, sink, kafka, state, campaigns, clock, daemon
	Level Level     `json:"level"`
	What  string    `json:"what"`  // what happened, and to what
	Since time.Time `json:"since"` // when the daemon saw it first
	Mend  string    `json:"mend"`  // what mends it, commands and statements in backquotes; or that nothing is to be done

	precondition.Remedy // mend taken apart: at least one of both is there
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
	// largeClockSkew is how far this machine's clock may be off, beyond the error of the
	// comparison.
	largeClockSkew = time.Second
)

// FindProblems lists the problems of a report, the worst first; Since is not set.
func FindProblems(r *Report, site Site) []Problem {
	list := findProblems(r, site)
	for i := range list {
		list[i].Remedy = precondition.SplitRemedy(list[i].Mend)
	}
	return list
}

// findProblems lists the problems without their remedies taken apart.
func findProblems(r *Report, site Site) []Problem {
	if r.Stopping {
		return append(haltProblems(r), Problem{Part: "daemon", Level: LevelWork, What: "the daemon was asked to end; it finishes the steps in flight",
			Mend: "nothing to do: the next start goes on from there"})
	}
	list := mergePostgres(slices.Concat(stateProblems(r, site), sourceProblems(r, site), laneProblems(r, site), heldProblems(r)), r, site)
	if !slices.ContainsFunc(list, func(p Problem) bool { return p.Level == LevelHalted || p.Level == LevelDown }) {
		list = append(list, stallProblems(r)...)
	}
	list = append(list, clockProblems(r)...)
	slices.SortStableFunc(list, func(a, b Problem) int {
		return cmp.Compare(slices.Index(levelOrder, a.Level), slices.Index(levelOrder, b.Level))
	})
	return list
}

// clockProblems lists the clock that is off for certain.
func clockProblems(r *Report) []Problem {
	skew, off := time.Duration(r.ClockSkewMS*float64(time.Millisecond)), time.Duration(r.ClockSkewErrorMS*float64(time.Millisecond))
	if skew.Abs()-off < largeClockSkew {
		return nil
	}
	return []Problem{{Part: "clock", Level: LevelWarning, What: fmt.Sprintf("the clock of this machine is %s, give or take %s; campaigns start and end by it", skewText(skew), max(off, time.Millisecond).Round(time.Millisecond)),
		Mend: "`timedatectl set-ntp true` on the machine whose clock is wrong"}}
}

// skewText says how far this machine's clock is off.
func skewText(skew time.Duration) string {
	if skew < 0 {
		return (-skew).Round(time.Millisecond).String() + " behind Postgres'"
	}
	return skew.Round(time.Millisecond).String() + " ahead of Postgres'"
}

// haltProblems lists the halts.
func haltProblems(r *Report) []Problem {
	if h := r.Halted; h != nil {
		return []Problem{{Part: h.Part, Level: LevelHalted, What: h.What, Mend: h.Hint}}
	}
	return nil
}

// mergePostgres joins the problems of source and sink where both are one server that does
// not answer: one is to be mended.
func mergePostgres(list []Problem, r *Report, site Site) []Problem {
	if site.Source != site.Sink || r.Source.State != string(cdc.StateConnecting) || r.Source.LastError == "" {
		return list
	}
	_, cause, _ := strings.Cut(cutRemedy(r.Source.LastError), ": ")
	merged := false
	list = slices.DeleteFunc(list, func(p Problem) bool {
		same := strings.HasPrefix(p.What, sinkProblem) && strings.HasSuffix(p.What, cause)
		merged = merged || same
		return same
	})
	for i := range list {
		if p := &list[i]; merged && strings.HasPrefix(p.What, sourceProblem) {
			p.What = "Postgres at " + site.Source + " (source and sink) does not answer; campaigns wait: " + cause
		}
	}
	return list
}

// The beginnings of problems with a server.
const (
	sourceProblem = "the source's Postgres at "
	sinkProblem   = "the sink's Postgres at "
	kafkaProblem  = "Kafka at "
)

// cutRemedy returns the text of an error without the remedies that it carries.
func cutRemedy(text string) string {
	text, _ = precondition.CutRemedy(text)
	return text
}

// pastedRemedy matches a remedy that is a statement, or a command of Kafka.
var pastedRemedy = regexp.MustCompile(`^((ALTER|CREATE|DROP|GRANT|SELECT|UPDATE)|kafka-[a-z]+\.sh) [^` + "`]*$")

// composeRemedy returns what mends a server that does not answer: the remedy of its error,
// else its start.
func composeRemedy(remedy, start string) string {
	switch {
	case remedy == "":
		remedy = start
	case pastedRemedy.MatchString(remedy):
		remedy = "run `" + remedy + "`"
	}
	return "`dinnerbell doctor` names the cause; " + remedy + ", and it goes on by itself"
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
		cause, remedy := precondition.CutRemedy(s.LastError)
		p := Problem{Part: "source", Level: LevelDown, What: sourceProblem + site.Source + " does not answer; new campaigns wait for fresh subscriptions" + reasonSuffix(cause),
			Mend: composeRemedy(remedy, "start Postgres at "+site.Source)}
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
		list = append(list, waitingProblem(s.LastError))
	default:
	}
	if w := s.Work; w != nil {
		list = append(list, Problem{Part: "source", Level: LevelWork, What: fmt.Sprintf("%s under way: %s, %s of about %s rows", w.Kind, w.Stage, terminal.Thousands(w.Rows), terminal.Thousands(w.Total)), Mend: "nothing to do: campaigns go on"})
	}
	return append(list, slotProblems(s)...)
}

// waitingProblem describes a mirror that waits for the end of a migration, whose error says
// how to go on, or for another holder of the slot.
func waitingProblem(text string) Problem {
	p := Problem{Part: "source", Level: LevelDown}
	if what, hint, found := strings.Cut(text, "; to go on: "); found {
		p.What, p.Mend = "the source cannot be mirrored as it is now: "+what+"; for a minute the daemon waits, in case that a migration is under way", hint
		return p
	}
	p.What = "the mirror of the subscriptions waits" + reasonSuffix(text)
	p.Mend = "`SELECT slot_name, pid, application_name FROM pg_replication_slots JOIN pg_stat_activity ON pid = active_pid` names the holder of the slot: end it, or wait"
	return p
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
			Mend: "`ALTER SYSTEM SET max_slot_wal_keep_size = -1`, then `SELECT pg_reload_conf()`"}}
	}
	return nil
}

// laneProblems lists those of the lanes. Lanes with the same problem are one.
func laneProblems(r *Report, site Site) []Problem {
	if len(r.Lanes) == 0 {
		return addUnreachedProblems(noLaneProblems(r, site), r, site)
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
	return addUnreachedProblems(list, r, site)
}

// addUnreachedProblems adds the systems that do not answer and that no lane names.
func addUnreachedProblems(list []Problem, r *Report, site Site) []Problem {
	if r.Unreached == nil {
		return list
	}
	add := func(part, prefix, at, server, err string) {
		if err == "" || slices.ContainsFunc(list, func(p Problem) bool { return strings.HasPrefix(p.What, prefix) }) {
			return
		}
		cause, remedy := precondition.CutRemedy(err)
		list = append(list, Problem{Part: part, Level: LevelDown, What: prefix + at + " does not answer; campaigns wait" + reasonSuffix(cause), Mend: composeRemedy(remedy, "start "+server+" at "+at)})
	}
	add("sink", sinkProblem, site.Sink, "Postgres", r.Unreached.Sink)
	add("kafka", kafkaProblem, site.Brokers, "the broker", r.Unreached.Kafka)
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
		text, ok := strings.CutPrefix(reason, noneOwned)
		if !ok {
			continue
		}
		text = strings.TrimLeft(text, ":, ")
		if strings.HasPrefix(text, ownedByOthers) {
			return []Problem{{Part: "lanes", Level: LevelWarning, What: "this daemon stands by: " + text, Mend: "`dinnerbell setup`, if the campaigns topic is missing"}}
		}
		if strings.HasPrefix(text, groupIsSilent) {
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
	cause, remedy := precondition.CutRemedy(text)
	switch {
	case strings.Contains(lower, "kafka") || strings.Contains(lower, "broker") || strings.Contains(lower, "consumer group") || containsAny(text, site.Brokers):
		return kafkaProblem + site.Brokers + " does not answer as it should; campaigns wait" + reasonSuffix(cause), composeRemedy(remedy, "start the broker at "+site.Brokers)
	case strings.Contains(lower, "postgres") || strings.Contains(lower, "sqlstate") || strings.Contains(lower, "sink") || containsAny(text, site.Sink):
		return sinkProblem + site.Sink + " does not answer as it should; campaigns wait" + reasonSuffix(cause), composeRemedy(remedy, "start Postgres at "+site.Sink)
	}
	mend = "`dinnerbell doctor` names the cause"
	if remedy != "" {
		mend = composeRemedy(remedy, "")
	}
	return "campaigns wait" + reasonSuffix(cause), mend
}

// containsAny reports whether a text names one of the addresses.
func containsAny(text, addresses string) bool {
	return slices.ContainsFunc(strings.Split(addresses, ","), func(a string) bool { return a != "" && strings.Contains(text, a) })
}

// stallProblems lists the work that stands still, which only the reasons tell. A server
// that does not answer, and the like, explains it.
func stallProblems(r *Report) []Problem {
	var list []Problem
	for _, reason := range r.Reasons {
		if part, what, ok := strings.Cut(reason, ": "); ok && strings.Contains(what, noProgress) {
			list = append(list, Problem{Part: part, Level: LevelDown, What: what, Mend: "`dinnerbell doctor` names the cause; if it names none, restart the daemon"})
		}
	}
	return list
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

func reasonSuffix(text string) string {
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
