package main

import (
	"fmt"

	"dinnerbell/cmd/dinnerbell/internal/config"

	"github.com/alecthomas/kong"
)

// unavailableCmd stands for commands of a later version. It takes any arguments and
// refuses.
type unavailableCmd struct {
	Args []string `arg:"" optional:""`
}

// Run refuses.
func (*unavailableCmd) Run(k *kong.Context) error {
	return notAvailable(k.Selected().Name)
}

// notAvailable returns the error for a command or an option of a later version.
func notAvailable(what string) error {
	return fmt.Errorf("%w: %s: %w", errUsage, what, config.ErrNotAvailable)
}
