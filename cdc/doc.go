// Package cdc mirrors one Postgres table into the local state.
//
//	slot + snapshot ──tablecopy──► state.Loader      (once, and whenever the stream is another one)
//	walsender ──► receiver ──queue──► applier ──► state.Apply ──► syncer ──► status sender ──► walsender
//	                                     │
//	                  Barrier ◄── position (visible here) ◄── probe (committed there)
//
// A [Mirror] runs one session after the other. A session has three connections to
// the same server: the replication connection, one for catalogs and the slot, one
// for the barrier. When one of them fails, all are made again. Each is owned by one
// goroutine; the replication connection by two, one for each direction.
//
// The position that is acknowledged to Postgres is the one that [state.Store.Sync]
// returned, never one that was merely received.
//
// Below it, package source is the database and its catalogs, tablecopy the copy of
// the table, replication the stream, and pgoutput the pure decoders.
package cdc
