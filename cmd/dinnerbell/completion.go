package main

import (
	"fmt"

	"dinnerbell/cmd/dinnerbell/internal/completion"

	"github.com/alecthomas/kong"
)

// completionCmd prints the code that makes a shell complete command lines.
type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Help shows the commands that switch completion on.
func (*completionCmd) Help() string {
	return `Examples:
  source <(dinnerbell completion bash)                                  # in ~/.bashrc
  source <(dinnerbell completion zsh)                                   # in ~/.zshrc, behind compinit
  dinnerbell completion fish > ~/.config/fish/completions/dinnerbell.fish`
}

// Run prints the code.
func (c *completionCmd) Run(a *invocation) error {
	script, err := completion.Script(c.Shell)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	_, err = fmt.Fprint(a.stdout, script)
	return err
}

// completeCmd answers a shell that completes a command line. It takes any words.
type completeCmd struct {
	Words []string `arg:"" optional:"" passthrough:""`
}

// Run prints the words that can come next, one a line.
func (c *completeCmd) Run(a *invocation, k *kong.Kong) error {
	words := c.Words
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	for _, w := range completion.Words(k.Model, words) {
		if _, err := fmt.Fprintln(a.stdout, w); err != nil {
			return err
		}
	}
	return nil
}
