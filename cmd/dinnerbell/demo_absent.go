//go:build nodemo

package main

import "errors"

// demoCmd stands for the demo in a build without it: production needs neither a broker
// nor a Postgres inside the program.
type demoCmd struct {
	Args []string `arg:"" optional:"" passthrough:""`
}

// Help says which build has the demo.
func (*demoCmd) Help() string {
	return `This build has no demo. A build from source has it:

Example:
  dinnerbell version
  make demo`
}

// Run refuses.
func (*demoCmd) Run() error {
	return errors.New("this build of dinnerbell has no demo; run `make demo` in the source")
}

// brokerCmd is a part of the demo.
type brokerCmd struct{}

// Run refuses.
func (*brokerCmd) Run() error { return (&demoCmd{}).Run() }
