//go:build race

package envtest

import "time"

// RaceDetector tells whether the test binary runs under the race detector. Pebble then
// checks its invariants too and is many times slower.
const RaceDetector = true

// Patience bounds how long a test waits for what must come.
const Patience = 6 * time.Minute
