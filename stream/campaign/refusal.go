package campaign

import "fmt"

// ReasonClass is the kind of a dead letter's reason, for metrics and for a choice among
// dead letters: the text of a reason may change, its class does not.
type ReasonClass string

// The classes of reasons. Refusals of this package have the first eight.
const (
	ClassTombstone    ReasonClass = "tombstone"     // a null value
	ClassNotJSON      ReasonClass = "not_json"      // empty, cut off, compressed, in another encoding, several values
	ClassNotObject    ReasonClass = "not_object"    // JSON, but an array, a string, a number
	ClassMissingField ReasonClass = "missing_field" // missing, or null
	ClassWrongType    ReasonClass = "wrong_type"    // a field of another JSON type, such as a time in quotes
	ClassBadText      ReasonClass = "bad_text"      // characters that are none, or that Postgres cannot hold
	ClassBadID        ReasonClass = "bad_id"        // empty or too long
	ClassBadTime      ReasonClass = "bad_time"      // no whole second of the years 1970 to 9999, or an end before the start

	ClassTooLarge   ReasonClass = "too_large"  // the message, or a notification of it
	ClassUnreadable ReasonClass = "unreadable" // the record batch is damaged
	ClassTable      ReasonClass = "table"      // the feedback table cannot hold the campaign, or refuses its rows
	ClassClients    ReasonClass = "clients"    // no refused message: the letter names clients who were left out
)

// ReasonClasses lists all classes.
var ReasonClasses = [...]ReasonClass{
	ClassTombstone, ClassNotJSON, ClassNotObject, ClassMissingField, ClassWrongType, ClassBadText, ClassBadID, ClassBadTime,
	ClassTooLarge, ClassUnreadable, ClassTable, ClassClients,
}

// ClassCounts count dead letters by the class of their reason, in the order of
// ReasonClasses.
type ClassCounts [len(ReasonClasses)]int64

// Refusal tells why a message is no campaign. Reason names the producer's mistake in one
// sentence, fit for a dead letter.
type Refusal struct {
	Class  ReasonClass
	Reason string
}

// Refuse returns a refusal with a formatted reason.
func Refuse(class ReasonClass, format string, args ...any) *Refusal {
	return &Refusal{Class: class, Reason: fmt.Sprintf(format, args...)}
}
