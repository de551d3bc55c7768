// Package halt holds the one error that stops a part of the daemon until an
// operator has acted.
package halt

import "fmt"

// Part is the part of the daemon that stops. Its text is the field "part" of
// `dinnerbell status --json`.
type Part string

// The parts of the daemon.
const (
	Source Part = "source" // the mirror of the subscriptions
	Stream Part = "stream" // the lanes
	State  Part = "state"  // the store on the local disk
)

// AllLanes is the Lane of a halt that stops every lane.
const AllLanes int32 = -1

// Error reports that a part cannot keep a guarantee, and that trying again does
// not help. Only this error, and the errors of an unusable state directory, make
// the process exit with 3.
type Error struct {
	Part Part
	Lane int32  // of Stream alone: the partition, or AllLanes
	What string // the event, its object, and the effect
	Hint string // the command or the statement that mends it
}

// Error returns the halt in one line: the lane if there is one, the event, and how
// to go on.
func (e *Error) Error() string {
	if e.Part == Stream && e.Lane >= 0 {
		return fmt.Sprintf("lane %d halted: %s", e.Lane, e.Text())
	}
	return "halted: " + e.Text()
}

// Text returns what happened and how to go on, for where the part and its state
// stand beside it.
func (e *Error) Text() string {
	if e.Hint == "" {
		return e.What
	}
	return e.What + "; to go on: " + e.Hint
}
