package state

import (
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
)

// rowFilterPolicy makes a table's filter of the keys that are looked up one by one. No join
// key and no key of the delivered caches is: the join scans both. It has the name of Pebble's
// filters and reads them, so that tables of earlier versions keep theirs.
type rowFilterPolicy struct{ bloom.FilterPolicy }

// MayContain reports whether the table may hold the key.
func (p rowFilterPolicy) MayContain(kind pebble.FilterType, filter, key []byte) bool {
	return isScanned(key) || p.FilterPolicy.MayContain(kind, filter, key)
}

// NewWriter returns a writer of one table's filter.
func (p rowFilterPolicy) NewWriter(kind pebble.FilterType) pebble.FilterWriter {
	return rowFilterWriter{p.FilterPolicy.NewWriter(kind)}
}

type rowFilterWriter struct{ pebble.FilterWriter }

// AddKey adds a key unless it is only scanned.
func (w rowFilterWriter) AddKey(key []byte) {
	if !isScanned(key) {
		w.FilterWriter.AddKey(key)
	}
}

// isScanned reports whether a key belongs to a space that is read in order only.
func isScanned(key []byte) bool {
	return len(key) > 0 && (key[0] == spaceJoin || key[0] == spaceDelivered)
}
