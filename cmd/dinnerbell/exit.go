package main

import (
	"errors"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/internal/halt"
	"dinnerbell/state"
)

// The exit codes of the contract.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitHalted = 3
)

// errUsage reports a wrong command line, or one that asks for something that is not
// available yet.
var errUsage = errors.New("usage")

// exitCode returns the exit code for an error. An error is a halt if neither
// another attempt nor the configuration can mend it (a lost slot, a sink rolled
// back, state of a newer version): a supervisor should then alert an operator and
// not restart. An explain that cannot know ends with 2: 1 says that the client was not
// notified.
func exitCode(err error) int {
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errUsage), errors.Is(err, errNotKnown), errors.Is(err, control.ErrArguments), errors.Is(err, config.ErrInvalid):
		return exitUsage
	case errors.Is(err, state.ErrNewerFormat), errors.Is(err, state.ErrForeign):
		return exitHalted
	}
	if daemon, ok := errors.AsType[*control.RemoteError](err); ok {
		return daemon.Exit
	}
	if _, halted := errors.AsType[*halt.Error](err); halted {
		return exitHalted
	}
	return exitFailed
}
