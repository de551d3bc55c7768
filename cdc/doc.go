// Package cdc mirrors one Postgres table into the local state.
//
//	slot + snapshot ──COPY──► state.Loader            (once, or when the stream is not the one we know)
//	walsender ──► receiver ──queue──► applier ──► state.Apply ──► syncer ──► feedback ──► walsender
//	                                     │
//	                  Barrier ◄── position (what is visible here) ◄── probe (what is committed there)
//
// A session is three connections to the same server: the replication
// connection, one for catalogs and the slot, one for the barrier. When one of
// them fails, all are made again. Each is owned by one goroutine; the
// replication connection by two, one for each direction.
//
// The position that is acknowledged to Postgres is the one that
// [state.Store.Sync] returned, never one that was merely received.
package cdc
