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
