package state

import "strings"

// holdsPebble says whether a directory's names are those of a Pebble store
// that was opened at least once.
func holdsPebble(names []string) bool {
	for _, name := range names {
		if strings.HasPrefix(name, "MANIFEST-") || strings.HasPrefix(name, "marker.manifest.") || name == "CURRENT" {
			return true
		}
	}
	return false
}
