//go:build !race

package envtest

import "time"

// RaceDetector tells whether the test binary runs under the race detector.
const RaceDetector = false

// Patience bounds how long a test waits for what must come. An idle machine needs
// milliseconds; a machine that runs three test binaries on two slow cores needs minutes.
const Patience = 2 * time.Minute
