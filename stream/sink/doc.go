// Package sink speaks to the Postgres that notifications are decided in. It owns
// the daemon's own tables (lane, campaign, outbox and layout), the connections to
// them, the pipeline in which a step's transaction travels, and everything that
// SQL must know of the user's feedback table.
//
// The package makes no decisions: its callers choose the campaigns to join and the steps
// to write, and handle the failure of a step.
package sink
