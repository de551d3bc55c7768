//go:build !failpoints

// Package failpoint names the moments at which the daemon may die. A binary
// built with the tag "failpoints" kills itself at the one that
// DINNERBELL_FAILPOINT names; any other binary holds no trace of them. The
// tests take the list of points from the source, so a point that no test
// reaches is seen.
package failpoint

// Hit marks the moment name, in the form "part/event".
func Hit(string) {}
