package envtest

import (
	"os"
	"testing"
)

// Long skips a test that takes minutes or gigabytes unless TEST_LONG=1 is set,
// as by `make test-long`.
func Long(t testing.TB) {
	t.Helper()
	if os.Getenv("TEST_LONG") != "1" {
		t.Skip("takes minutes or gigabytes; run by `make test-long`")
	}
}

// Slow skips a test that takes a minute or more unless TEST_SLOW=1 is set, as by `make
// test-slow`, which continuous integration runs.
func Slow(t testing.TB) {
	t.Helper()
	if os.Getenv("TEST_SLOW") != "1" {
		t.Skip("takes a minute; run by `make test-slow`")
	}
}

// Secure skips a test that needs an Apache Kafka with access control and a Postgres with
// TLS of its own, unless TEST_SECURE=1 is set, as by `make test-secure`.
func Secure(t testing.TB) {
	t.Helper()
	if os.Getenv("TEST_SECURE") != "1" {
		t.Skip("starts secured servers; run by `make test-secure`")
	}
}
