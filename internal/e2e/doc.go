// Package e2e holds no code but tests: the guarantees, shown on the real
// binary as a process, beside real Postgres and a real broker ($KAFKA_BROKERS,
// or kfake). What a test expects is computed in SQL or kept by the test itself;
// nothing of the daemon's packages is imported.
package e2e
