package demo

import (
	"bytes"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"dinnerbell/internal/testenv"
)

// stopLimit is how long the daemon may drain before it is killed.
const stopLimit = 30 * time.Second

// startDaemon runs `dinnerbell run` as a child process, which gets a SIGTERM if the
// demo dies.
func startDaemon(binary, config, log string, env []string) (*testenv.Child, error) {
	cmd := exec.Command(binary, "-c", config, "run")
	cmd.Dir, cmd.Env = filepath.Dir(config), env
	return testenv.StartChild(cmd, log, syscall.SIGTERM)
}

// wrapLine returns a line, indented, as lines of at most width characters, unless a word
// is longer.
func wrapLine(line, indent string, width int) string {
	var b strings.Builder
	used := 0
	for word := range strings.FieldsSeq(line) {
		switch n := utf8.RuneCountInString(word); {
		case used == 0:
			b.WriteString(indent + word)
			used = len(indent) + n
		case used+1+n > width:
			b.WriteString("\n" + indent + "  " + word)
			used = len(indent) + 2 + n
		default:
			b.WriteString(" " + word)
			used += 1 + n
		}
	}
	return b.String() + "\n"
}

// runCommand runs one short command of the binary and prints its output.
func runCommand(binary string, env []string, out io.Writer, args ...string) error {
	cmd := exec.Command(binary, args...)
	cmd.Env = env
	cmd.SysProcAttr = testenv.ChildAttributes(syscall.SIGTERM)
	output, err := cmd.CombinedOutput()
	for line := range bytes.Lines(output) {
		if err == nil && bytes.HasPrefix(line, []byte("warning: ")) {
			continue // about a cluster of one broker, which the demo is
		}
		_, _ = fmt.Fprint(out, wrapLine(string(line), "         ", 80))
	}
	if err != nil {
		return fmt.Errorf("run dinnerbell %s: %w", strings.Join(args, " "), err)
	}
	return nil
}
