// Package precondition holds the vocabulary of the one list of facts about
// foreign systems on which dinnerbell's guarantees rest: a table's column types,
// a role's rights, a topic's cleanup policy.
//
// Package cdc lists the preconditions of the source, package stream those of the
// sink and of Kafka. `setup` checks the list before it creates anything, `run`
// checks it at its start, and every new session (a mirror's, a lane's takeover)
// checks those that can change while the daemon runs. A precondition belongs in
// the list and nowhere else.
package precondition

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Level orders findings by their effect on the daemon.
type Level uint8

// Levels. The texts are those that commands print.
const (
	OK      Level = iota // the precondition holds
	Warn                 // the daemon runs, and the fact will hurt later
	Unknown              // the fact could not be read: no right, no answer in time
	Fail                 // `run` would refuse, or a guarantee would not hold
)

// String returns the word that commands print.
func (l Level) String() string {
	switch l {
	case OK:
		return "ok"
	case Warn:
		return "warn"
	case Unknown:
		return "unknown"
	case Fail:
		return "FAIL"
	}
	return fmt.Sprintf("level %d", uint8(l))
}

// MarshalText returns the same word for JSON.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Moment is when a check is made: a set of the constants below.
type Moment uint8

// Moments.
const (
	// AtSetup: before `setup` creates anything. Facts about what setup itself
	// creates do not belong here.
	AtSetup Moment = 1 << iota
	// AtStart: at the start of `run`, when setup has been done.
	AtStart
	// AtSession: at every new replication session and every takeover, for facts
	// that can change while the daemon runs.
	AtSession

	// Always is the set of all three.
	Always = AtSetup | AtStart | AtSession
)

// Finding is the outcome of one check on one object.
type Finding struct {
	Name   string `json:"name"`             // of the check, such as "source.wal_level"; Run fills it in
	Level  Level  `json:"level"`            // how bad it is
	Object string `json:"object,omitempty"` // the inspected object, such as "topic dinnerbell.progress"
	Found  string `json:"found"`            // the fact and its fault
	Effect string `json:"effect,omitempty"` // what happens while the fact stays as it is
	Fix    string `json:"fix,omitempty"`    // the statement or the command that mends it, ready to paste
}

// String returns the finding in one line, without its level.
func (f Finding) String() string {
	var b strings.Builder
	if f.Object != "" {
		b.WriteString(f.Object + ": ")
	}
	b.WriteString(f.Found)
	if f.Effect != "" {
		b.WriteString("; " + f.Effect)
	}
	if f.Fix != "" {
		b.WriteString(" (to mend: " + f.Fix + ")")
	}
	return b.String()
}

// Check is one precondition. F gives access to the system that is looked at: a
// connection, a set of facts that was read at once.
type Check[F any] struct {
	Name string // part and fact, such as "kafka.progress.cleanup_policy"
	At   Moment
	// Read reads the fact and returns its findings. No finding means that the
	// precondition holds. An error means that the fact could not be read.
	Read func(ctx context.Context, from F) ([]Finding, error)
}

// Timeout bounds one check, so that a system that does not answer delays the
// list and does not stop it.
const Timeout = 10 * time.Second

// Run makes the checks that belong to the moment, in order, each within Timeout.
// The report has at least one finding per check. The error is the first that
// kept a fact from being read; the report then has an Unknown finding in its
// place, and the checks behind it are made all the same.
func Run[F any](ctx context.Context, checks []Check[F], at Moment, from F) (Report, error) {
	var report Report
	var first error
	for _, c := range checks {
		if c.At&at == 0 {
			continue
		}
		findings, err := readWithin(ctx, c, from)
		if err != nil {
			if first == nil {
				first = fmt.Errorf("check %s: %w", c.Name, err)
			}
			findings = append(findings, Finding{Level: Unknown, Found: "cannot be checked: " + err.Error()})
		}
		if len(findings) == 0 {
			findings = []Finding{{Level: OK, Found: "ok"}}
		}
		for _, f := range findings {
			f.Name = c.Name
			report = append(report, f)
		}
	}
	return report, first
}

func readWithin[F any](ctx context.Context, c Check[F], from F) ([]Finding, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	return c.Read(ctx, from)
}

// Report is the outcome of a list, in its order.
type Report []Finding

// At returns the findings of one level.
func (r Report) At(level Level) []Finding {
	var found []Finding
	for _, f := range r {
		if f.Level == level {
			found = append(found, f)
		}
	}
	return found
}

// Violation returns the first finding that is a Fail; ok is false without a Fail.
func (r Report) Violation() (f Finding, ok bool) {
	if failed := r.At(Fail); len(failed) > 0 {
		return failed[0], true
	}
	return Finding{}, false
}

// UnmetError is a precondition that does not hold.
type UnmetError struct{ Finding }

// Error returns the violation and its fix in one line.
func (e *UnmetError) Error() string { return e.String() }

// Unmet returns the report's violation as an *UnmetError. Where nothing is
// violated it returns err, the error that came with the report.
func (r Report) Unmet(err error) error {
	if violation, ok := r.Violation(); ok {
		return &UnmetError{violation}
	}
	return err
}
