package config

import "reflect"

// ChangedKeys returns the keys whose values differ between two configurations, sorted:
// those that a running daemon takes over, and those that need a restart. Secrets are
// compared as they are written; what they refer to is read at each use anyway.
func ChangedKeys(a, b *Config) (now, restart []string) {
	theirs := newTree(b).allLeaves()
	for i, f := range newTree(a).allLeaves() {
		old, isSecret := reflect.TypeAssert[Secret](f.value)
		later, _ := reflect.TypeAssert[Secret](theirs[i].value)
		switch {
		case isSecret && old.raw == later.raw, !isSecret && reflect.DeepEqual(f.value.Interface(), theirs[i].value.Interface()):
		case ruleOf(f.key).reload:
			now = append(now, f.key)
		default:
			restart = append(restart, f.key)
		}
	}
	return now, restart
}
