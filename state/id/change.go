package id

import "strconv"

// Op is the kind of a change.
type Op uint8

// The kinds of changes, as logical replication sends them.
const (
	Insert Op = iota + 1
	Update
	Delete
	Truncate
)

// String returns the SQL keyword.
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
	// Row is the key of the row after the change; for Delete, of the deleted row.
	// Truncate does not use it.
	Row RowID
	// OldRow is the key that the row had before an Update changed it, else "".
	OldRow RowID
	// Restaurant and Client are the new values; "" is NULL. A row with a NULL is
	// stored, because a later update may fill it in, but it is no subscription.
	Restaurant, Client ID
	// KeepRestaurant and KeepClient: an Update did not change an out-of-line value,
	// so Postgres did not send it ("unchanged TOAST"). The stored value stays. It is
	// an error if the row is not stored.
	KeepRestaurant, KeepClient bool
}
