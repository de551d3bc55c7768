package config

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"dinnerbell/internal/postgres"
)

const (
	// passwordPatience bounds one run of a password command.
	passwordPatience = 10 * time.Second
	// maxPassword bounds the output of a password command, in bytes. A token of Amazon RDS
	// has about a thousand.
	maxPassword = 64 << 10
)

// passwordRuns lets connections that begin at the same time share one run of a password
// command.
type passwordRuns struct {
	mu     sync.Mutex // guards the other fields, and is held while the command runs
	began  time.Time  // of the last run
	result func() (password string, err error)
}

// readPassword returns the password that a run of the command prints which began after the
// call, its own run or another's. The error names the program and its last line on standard
// error, never its output.
func (r *passwordRuns) readPassword(argv []string) (string, error) {
	asked := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.began.After(asked) {
		return r.result()
	}
	began := time.Now()
	password, err := runPasswordCommand(argv)
	r.began, r.result = began, func() (string, error) { return password, err }
	return password, err
}

// runPasswordCommand runs a program and returns its output without the line's end.
func runPasswordCommand(argv []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), passwordPatience)
	defer cancel()
	out, trouble := &boundedBuffer{limit: maxPassword}, &boundedBuffer{limit: 4 << 10}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, trouble
	cmd.WaitDelay = time.Second // a child of the program may hold the pipes open
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("%s did not end within %s", argv[0], passwordPatience)
	case errors.Is(err, exec.ErrNotFound):
		return "", fmt.Errorf("%s is not installed, or not in PATH", argv[0])
	case err != nil && trouble.lastLine() != "":
		return "", fmt.Errorf("%s: %w: %s", argv[0], err, trouble.lastLine())
	case err != nil:
		return "", fmt.Errorf("%s: %w", argv[0], err)
	case out.overflown:
		return "", fmt.Errorf("%s prints more than %d bytes", argv[0], maxPassword)
	}
	password := strings.TrimRight(string(out.kept), "\r\n")
	switch {
	case password == "":
		return "", fmt.Errorf("%s prints no password", argv[0])
	case strings.ContainsAny(password, "\r\n\x00") || !utf8.ValidString(password):
		return "", fmt.Errorf("%s prints more than one line, or no text; it must print the password alone", argv[0])
	}
	return password, nil
}

// boundedBuffer keeps the first bytes that are written to it.
type boundedBuffer struct {
	kept      []byte
	limit     int
	overflown bool
}

// Write implements io.Writer; it never fails, so that the program is not cut off.
func (b *boundedBuffer) Write(p []byte) (int, error) {
	keep := min(len(p), b.limit-len(b.kept))
	b.overflown = b.overflown || keep < len(p)
	b.kept = append(b.kept, p[:keep]...)
	return len(p), nil
}

// lastLine returns the last line that is not empty.
func (b *boundedBuffer) lastLine() string {
	lines := strings.Split(strings.TrimSpace(string(b.kept)), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// passwordCommand is how an address gets its password from a command.
type passwordCommand struct {
	key     string // of the command
	argv    []string
	runs    *passwordRuns
	address Secret
}

// reveal returns the address with the password that the command prints; without a command,
// the address alone.
func (c *passwordCommand) reveal() (string, error) {
	raw, err := c.address.Reveal()
	if err != nil || len(c.argv) == 0 {
		return raw, err
	}
	password, err := c.runs.readPassword(c.argv)
	if err != nil {
		return "", fmt.Errorf("%s: %w", c.key, err)
	}
	raw = postgres.AddPassword(raw, password)
	if c.address.seen != nil {
		c.address.seen.addSecret(c.address.key, raw)
	}
	return raw, nil
}

// check refuses a command beside a password in the address. It does not run the command,
// as it makes no connection.
func (c *passwordCommand) check() error {
	if len(c.argv) == 0 {
		return nil
	}
	if raw, err := c.address.Reveal(); err == nil && len(postgres.Passwords(raw)) > 0 {
		return fmt.Errorf("%s: %s has a password too; leave one of them out", c.key, c.address.key)
	}
	return nil // an error of the address is reported for its own key
}

// passwordCommands returns the commands of the source and of the sink.
func (c *Config) passwordCommands() (source, sink *passwordCommand) {
	return &passwordCommand{"source.password_command", c.Source.PasswordCommand, c.sourceRuns, c.Source.URL},
		&passwordCommand{"sink.password_command", c.Sink.PasswordCommand, c.sinkRuns, c.Sink.URL}
}
