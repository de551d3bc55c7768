package state

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

// Batch is any number of whole source transactions, or one part of a
// transaction that is too large to be held at once.
type Batch struct {
	Changes []Change
	// End is the end LSN of the last whole transaction in the batch. There may
	// be no changes: then it is a position the server told in a keepalive.
	// Zero: a part; the transaction goes on in the next batch.
	End LSN
}

// Source says which table of which server the state mirrors, through what. A
// position means nothing without it.
type Source struct {
	SystemID string `json:"system_id"`
	Timeline int64  `json:"timeline"`
	// History tells where the timelines before this one ended. Two standbys that
	// were promoted apart have one number and two histories.
	History        string `json:"history,omitempty"`
	Database       string `json:"database"`
	Slot           string `json:"slot"`
	Publication    string `json:"publication"`
	PublicationOID uint32 `json:"publication_oid"`
	Schema         string `json:"schema"`
	Table          string `json:"table"`
	TableOID       uint32 `json:"table_oid"`
	// Catalog changes with anything else that lets the stream and the store part
	// company: columns and types, the versions of the publication's catalog rows.
	Catalog string `json:"catalog"`
}
