package config

import (
	"fmt"

	"dinnerbell/internal/postgres"
)

// passwordCommand is how an address gets its password from a command.
type passwordCommand struct {
	key     string // of the command
	argv    []string
	runs    *sharedRuns
	address Secret
}

// reveal returns the address with the password that the command prints; without a command,
// the address alone.
func (c *passwordCommand) reveal() (string, error) {
	raw, err := c.address.Reveal()
	if err != nil || len(c.argv) == 0 {
		return raw, err
	}
	password, err := c.runs.readLine(c.argv, "password")
	if err != nil {
		return "", fmt.Errorf("%s: %w", c.key, err)
	}
	raw = postgres.AddPassword(raw, password)
	if c.address.seen != nil {
		c.address.seen.addSecret(c.address.key, raw)
	}
	return raw, nil
}

// validate refuses a command beside a password in the address. It does not run the command,
// as it makes no connection.
func (c *passwordCommand) validate() error {
	if len(c.argv) == 0 {
		return nil
	}
	if raw, err := c.address.Reveal(); err == nil && len(postgres.Passwords(raw)) > 0 {
		switch postgres.FindPassword(raw) {
		case postgres.PasswordInEnvironment:
			return fmt.Errorf("%s: the environment variable PGPASSWORD has a password too; unset it, or leave the command out", c.key)
		case postgres.PasswordInFile:
			return fmt.Errorf("%s: a password file of this user (PGPASSFILE or ~/.pgpass) has a password too; remove its line, or leave the command out", c.key)
		case postgres.PasswordInAddress:
		}
		return fmt.Errorf("%s: %s has a password too; leave one of them out", c.key, c.address.key)
	}
	return nil // an error of the address is reported for its own key
}

// passwordCommands returns the commands of the source and of the sink.
func (c *Config) passwordCommands() (source, sink *passwordCommand) {
	return &passwordCommand{"source.password_command", c.Source.PasswordCommand, c.sourceRuns, c.Source.URL},
		&passwordCommand{"sink.password_command", c.Sink.PasswordCommand, c.sinkRuns, c.Sink.URL}
}
