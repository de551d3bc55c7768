// Package stream turns campaigns into notifications.
//
// It reads the campaigns topic, joins every campaign with the subscriptions
// in package state, and writes each notification twice: as a row of the
// feedback table in Postgres and as a record of the notifications topic in
// Kafka. Postgres decides and Kafka follows:
//
//	intake ─┐                    ┌─ Postgres: rows + campaigns + outbox + lane   (one transaction)
//	        ├─► decide ─► commit ┤
//	starts ─┘                    └─► ship ─► Kafka: records + progress           (one transaction)
//
// One partition of the campaigns topic is a lane. Each arrow above is a
// channel inside one lane's session; lanes share nothing in memory but the
// state store and the freshness barrier.
//
// The numbers that carry the protocol:
//
//	P  lane.seq in Postgres: the last step that is decided
//	K  seq in the progress topic: the last step that is shipped
//
// and its invariants, each with a test:
//
//   - an outbox row is written once and never changed;
//   - the feedback rows of this deployment are the disjoint union of the outbox payloads 1..P;
//   - a read_committed consumer sees the payloads 1..K, each once, in order;
//   - K ≤ P ≤ K + window.
//
// An error after which the outcome is unknown ends the session. The next session
// begins with a TAKEOVER, which reads P and K anew; no outcome is ever guessed from an
// error.
package stream
