// Package sink speaks to the Postgres that notifications are decided in. It owns
// the daemon's own tables (lane, campaign, outbox and layout), the connections to
// them, the pipeline in which a step's transaction travels, and everything that
// SQL must know of the user's feedback table.
//
// The package decides nothing: which campaign is joined, which step is written and
// what follows its failure is its callers' to say.
package sink
