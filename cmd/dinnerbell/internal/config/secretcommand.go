package config

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"
)

const (
	// secretPatience bounds one run of a command that prints a secret, and one request
	// for a token.
	secretPatience = 10 * time.Second
	// maxCommandOutput bounds the output of such a command, in bytes. A token of Amazon
	// RDS has about a thousand.
	maxCommandOutput = 64 << 10
)

// sharedRuns lets connections that begin at the same time share one run of what gets their
// secret, and its failure.
type sharedRuns struct {
	patience time.Duration // of a run

	mu     sync.Mutex // guards the other fields, and is held during a run
	began  time.Time  // of the last run
	result func() (secret string, err error)
}

func newSharedRuns() *sharedRuns { return &sharedRuns{patience: secretPatience} }

// runShared returns the result of a run of get that began after the call, its own run or
// another's. All calls have the same get.
func (r *sharedRuns) runShared(get func() (secret string, err error)) (string, error) {
	asked := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.began.After(asked) {
		return r.result()
	}
	began := time.Now()
	secret, err := get()
	r.began, r.result = began, func() (string, error) { return secret, err }
	return secret, err
}

// readLine returns the one line that a command prints. Errors name the program and its last
// line on standard error, never its output. noun is the word for the secret.
func (r *sharedRuns) readLine(argv []string, noun string) (string, error) {
	return r.runShared(func() (string, error) {
		line, err := runSecretCommand(argv, noun, r.patience)
		if err == nil && (strings.ContainsAny(line, "\r\n\x00") || !utf8.ValidString(line)) {
			return "", fmt.Errorf("%s prints more than one line, or no text; it must print the %s alone", argv[0], noun)
		}
		return line, err
	})
}

// readText is readLine for an output of any number of lines.
func (r *sharedRuns) readText(argv []string, noun string) (string, error) {
	return r.runShared(func() (string, error) { return runSecretCommand(argv, noun, r.patience) })
}

// runSecretCommand runs a program in a process group of its own, and returns its output
// without the last line's end. No process of the group outlives the run.
func runSecretCommand(argv []string, noun string, patience time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, trouble := &boundedBuffer{limit: maxCommandOutput}, &boundedBuffer{limit: 4 << 10}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, trouble
	cmd.WaitDelay = time.Second // a child of the program may hold the pipes open
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err := cmd.Run()
	if cmd.Process != nil {
		endGroup(cmd.Process.Pid)
	}
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("%s did not end within %s", argv[0], patience)
	case errors.Is(err, exec.ErrNotFound):
		return "", fmt.Errorf("%s is not installed, or not in PATH", argv[0])
	case err != nil && trouble.lastLine() != "":
		return "", fmt.Errorf("%s: %w: %s", argv[0], err, hideOutput(trouble.lastLine(), out.kept))
	case err != nil:
		return "", fmt.Errorf("%s: %w", argv[0], err)
	case out.overflown:
		return "", fmt.Errorf("%s prints more than %d bytes", argv[0], maxCommandOutput)
	}
	text := strings.TrimRight(string(out.kept), "\r\n")
	if text == "" {
		return "", fmt.Errorf("%s prints no %s", argv[0], noun)
	}
	return text, nil
}

// endGroup kills the remaining processes of a group whose leader has ended. In a container the
// daemon is process 1: it becomes the parent of these processes, and must wait for each.
func endGroup(group int) {
	_ = syscall.Kill(-group, syscall.SIGKILL) // fails where nothing is left
	for {
		if _, err := syscall.Wait4(-group, nil, 0, nil); err != nil && !errors.Is(err, syscall.EINTR) {
			return // no child of this process is left in the group
		}
	}
}

// jsonText matches a member of a JSON object that is a string.
var jsonText = regexp.MustCompile(`:\s*"([^"]+)"`)

// hideOutput removes the lines of a command's output, and the texts of a JSON object that it
// printed, from what the command says about its failure: it may have printed the secret
// before.
func hideOutput(text string, output []byte) string {
	var parts []string
	for line := range strings.Lines(string(output)) {
		parts = append(parts, strings.TrimSpace(line))
	}
	for _, member := range jsonText.FindAllSubmatch(output, -1) {
		parts = append(parts, string(member[1]))
	}
	for _, part := range parts {
		if len(part) >= minHidden {
			text = strings.ReplaceAll(text, part, redacted)
		}
	}
	return text
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
