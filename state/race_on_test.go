//go:build race

package state

// raceEnabled: Pebble then checks its invariants too and is many times slower.
const raceEnabled = true
