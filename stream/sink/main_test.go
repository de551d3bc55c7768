package sink

import (
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

func TestMain(m *testing.M) { envtest.Main(m) }
