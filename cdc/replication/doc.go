// Package replication speaks with a walsender: a [Stream] carries WAL in one
// direction, which a [Reader] decodes, and positions in the other, which a
// [StatusSender] sends. Reader and StatusSender have one goroutine each.
package replication
