package main

import (
	"fmt"

	"dinnerbell/cmd/dinnerbell/internal/config"

	"github.com/alecthomas/kong"
)

// unavailableCmd stands for the commands that a later version brings. They take any
// arguments and do nothing but say so.
type unavailableCmd struct {
	Args []string `arg:"" optional:""`
}

// Run refuses.
func (*unavailableCmd) Run(k *kong.Context) error {
	return notAvailable(k.Selected().Name)
}

// notAvailable is the refusal of a command or an option that comes later.
func notAvailable(what string) error {
	return fmt.Errorf("%w: %s: %w", errUsage, what, config.ErrNotAvailable)
}
