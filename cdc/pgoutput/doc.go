// Package pgoutput reads what Postgres sends of a table: the messages of its
// output plugin pgoutput, protocol version 1, and the rows of a binary COPY.
//
//	message ──► decoder ──► Assembler ──► Piece    a whole transaction, or a part of a large one
//	COPY data ────────────► CopyReader ──► row
//
// The package is pure: no IO, no clock, and nothing is kept of the input but
// copies of the ids. Whatever bytes come in, it neither panics nor allocates more
// than they hold.
package pgoutput
