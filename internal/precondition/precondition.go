// Package precondition holds the vocabulary of the one list of facts about
// foreign systems on which dinnerbell's guarantees rest: a table's column types,
// a role's rights, a topic's cleanup policy.
//
// Package cdc/source lists the preconditions of the source, packages stream/sink and
// stream/topic those of the sink and of Kafka. `setup` checks the list before it
// creates anything, `run` checks it at its start, every new session (a mirror's, a
// lane's takeover) checks those that can change while the daemon runs, and `doctor`
// checks all of them and shows what each has found. A precondition belongs in the
// list and nowhere else.
package precondition

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"dinnerbell/internal/halt"
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

	// AtDoctor: only when somebody asks with `doctor`, for facts that stop nothing and
	// will hurt later, and for facts that cost too much for a start.
	AtDoctor

	// afterSetup tells AfterSetup from AtStart.
	afterSetup

	// AfterSetup: when `setup` has created everything. It makes the checks of AtStart,
	// under a user that need not be that of `run`.
	AfterSetup = AtStart | afterSetup

	// Always is the set of the first three.
	Always = AtSetup | AtStart | AtSession
	// Everything is the set of all moments: what `doctor` checks.
	Everything = Always | AtDoctor
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
		b.WriteString(remedyMark + f.Fix + ")")
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
	// Show returns the fact, for `doctor` to show where Read has no finding; nil or an
	// empty text: there is nothing to show but that the check was made.
	Show func(from F) string
}

// Timeout bounds one check, so that a system that does not answer delays the
// list and does not stop it.
const Timeout = 10 * time.Second

// PlainOK is the text of a check that found nothing wrong and has nothing to show.
const PlainOK = "ok"

// Run makes the checks that belong to the moment, in order, each within Timeout.
// The report has at least one finding per check. The error is the first that
// kept a fact from being read; the report then has an Unknown finding in its
// place, and the checks behind it are made all the same. A *halt.Error is a fact that
// was read, and a Fail.
func Run[F any](ctx context.Context, checks []Check[F], at Moment, from F) (Report, error) {
	return RunOver(ctx, checks, at, Timeout, func(context.Context) (F, error) { return from, nil })
}

// RunOver is Run over a connection that one check may lose: it calls open before each
// check, which returns the access, made anew if need be. Each check, with the call of
// open before it, takes at most limit.
func RunOver[F any](ctx context.Context, checks []Check[F], at Moment, limit time.Duration, open func(context.Context) (F, error)) (Report, error) {
	var report Report
	var first error
	for _, c := range checks {
		if c.At&at == 0 {
			continue
		}
		findings, err := c.readWithin(ctx, at, limit, open)
		if err != nil {
			if first == nil {
				first = fmt.Errorf("check %s: %w", c.Name, err)
			}
			findings = append(findings, unreadable(err))
		}
		for _, f := range findings {
			f.Name = c.Name
			report = append(report, f)
		}
	}
	return report, first
}

// readWithin makes one check. It returns at least one finding, or an error.
func (c *Check[F]) readWithin(ctx context.Context, at Moment, limit time.Duration, open func(context.Context) (F, error)) ([]Finding, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	from, err := open(ctx)
	if err != nil {
		return nil, err
	}
	findings, err := c.Read(ctx, from)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	if err != nil || len(findings) > 0 {
		return findings, err
	}
	ok := Finding{Level: OK, Found: PlainOK}
	if c.Show != nil && at&AtDoctor != 0 {
		ok.Found = cmp.Or(c.Show(from), PlainOK)
	}
	return []Finding{ok}, nil
}

// unreadable is the finding in the place of a check that ended with an error.
func unreadable(err error) Finding {
	if halted, ok := errors.AsType[*halt.Error](err); ok {
		return Finding{Level: Fail, Found: halted.What, Fix: halted.Hint}
	}
	return Finding{Level: Unknown, Found: "cannot be checked: " + err.Error()}
}

// NotMade returns an Unknown finding for each check of the moment, for a system that
// could not be reached.
func NotMade[F any](checks []Check[F], at Moment, why string) (report Report) {
	for _, c := range checks {
		if c.At&at != 0 {
			report = append(report, Finding{Name: c.Name, Level: Unknown, Found: "cannot be checked: " + why})
		}
	}
	return report
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
// violated it returns err, the error that came with the report, as it does for a
// *halt.Error.
func (r Report) Unmet(err error) error {
	if _, halted := errors.AsType[*halt.Error](err); halted {
		return err
	}
	if violation, ok := r.Violation(); ok {
		return &UnmetError{violation}
	}
	return err
}
