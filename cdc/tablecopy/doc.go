// Package tablecopy copies the mirrored table, as one exported snapshot shows it,
// into a [RowSink]: over several connections where the table is large, and not at
// all where the rows that are read may not be those of the snapshot
// ([ErrRewritten]).
package tablecopy
