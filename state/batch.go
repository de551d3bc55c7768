package state

import (
	"dinnerbell/state/id"
)

// Batch is any number of whole source transactions, or one part of a
// transaction that is too large to be held at once.
type Batch struct {
	Changes []id.Change
	// End is the end LSN of the last whole transaction in the batch. There may
	// be no changes: then it is a position the server told in a keepalive.
	// Zero: a part; the transaction goes on in the next batch.
	End id.LSN
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
