package main

import (
	"dinnerbell/cmd/dinnerbell/internal/manual"

	"github.com/alecthomas/kong"
)

// manualCmd prints the manual page. The packages install it.
type manualCmd struct{}

// Run writes the page as man(7) source.
func (*manualCmd) Run(a *invocation, k *kong.Kong) error {
	return manual.Write(a.stdout, k.Model)
}
