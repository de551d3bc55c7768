// Package takeover makes a process the owner of a lane.
//
// A lane has one owner at a time. TakeOver fences the former owner in Postgres and in
// Kafka, reads how far both sinks are, compares them, and yields a Claim: the
// connections and positions with which a session goes on. The package also holds the
// preconditions of both sinks, which every takeover checks.
package takeover
