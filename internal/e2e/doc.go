// Package e2e holds only tests: they show the guarantees on the real binary as
// a process, beside real Postgres and a real broker ($KAFKA_BROKERS, or kfake).
// A test computes its expectations in SQL or keeps them itself; it imports none
// of the daemon's packages.
package e2e
