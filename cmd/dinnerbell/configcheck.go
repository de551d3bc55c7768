package main

import "fmt"

// configCmd groups the commands about the configuration.
type configCmd struct {
	Check configCheckCmd `cmd:"" help:"Read and check the configuration; connects to nothing."`
}

// configCheckCmd checks the configuration as run does before it connects.
type configCheckCmd struct{}

// Help shows an example.
func (*configCheckCmd) Help() string {
	return `The command reads the file and the environment, resolves all references, and checks every value.
It connects to no server; doctor does. It names every mistake, and exits with 2 if there is one.

Example:
  dinnerbell -c /etc/dinnerbell/dinnerbell.yaml config check`
}

// Run ends with 2 and names every mistake, or says where the configuration came from.
func (*configCheckCmd) Run(a *invocation) error {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "configuration is valid: %s\n", cfg.Describe(a.configFile, a.env))
	return err
}
