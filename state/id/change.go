package id

import "strconv"

// Op is what a change does.
type Op uint8

// The kinds of changes, as logical replication sends them.
const (
	Insert Op = iota + 1
	Update
	Delete
	Truncate
)

// String gives the SQL word.
func (o Op) String() string {
	switch o {
	case Insert:
		return "INSERT"
	case Update:
		return "UPDATE"
	case Delete:
		return "DELETE"
	case Truncate:
		return "TRUNCATE"
	}
	return "Op(" + strconv.Itoa(int(o)) + ")"
}

// Change is one change of one source row, or a TRUNCATE of the table.
type Change struct {
	Op Op
	// Row is the key of the row as it is now; for Delete, of the row that goes.
	// Unused by Truncate.
	Row RowID
	// OldRow is the key that the row had before an Update changed it, else "".
	OldRow RowID
	// Restaurant and Client are the new values. "" is NULL: such a row is
	// remembered (a later update may fill it in) but is no subscription.
	Restaurant, Client ID
	// KeepRestaurant and KeepClient say that an Update left an out-of-line
	// value alone and Postgres did not send it ("unchanged TOAST"): the stored
	// one stays. It is an error if the row is not stored.
	KeepRestaurant, KeepClient bool
}
