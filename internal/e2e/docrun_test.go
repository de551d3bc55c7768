package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// block is a fenced block of a document.
type block struct {
	heading string // the nearest heading above
	line    int
	lang    string // sh, sql, yaml, text, …
	text    string
}

// notRun begins a comment in the first line of a block that the tests do not run. The
// reason follows.
const notRun = "# not run by the tests: "

// readBlocks returns the fenced blocks of a document in order.
func readBlocks(text string) (blocks []block) {
	heading, open := "", -1
	for i, line := range strings.Split(text, "\n") {
		lang, isFence := strings.CutPrefix(line, "```")
		switch {
		case isFence && open >= 0:
			open = -1
		case isFence:
			blocks = append(blocks, block{heading: heading, line: i + 1, lang: lang})
			open = len(blocks) - 1
		case open >= 0:
			blocks[open].text += line + "\n"
		case strings.HasPrefix(line, "#"):
			heading = strings.TrimLeft(line, "# ")
		}
	}
	return blocks
}

// reader carries out the blocks of a document as a reader would: in a folder that looks
// like a checkout with the program built, in a shell whose variables last, beside real
// servers. The addresses of the documents become those of the servers.
type reader struct {
	*testing.T
	dir     string
	replace *strings.Replacer // addresses and folders of the documents
	env     []string
	groups  []int // process groups that may hold daemons
	daemon  *exec.Cmd
	command string // the line that started the daemon
}

// newReader makes the folder. replacements are pairs for [strings.NewReplacer].
func newReader(t *testing.T, replacements ...string) *reader {
	t.Helper()
	root, dir := envtest.Root(t), envtest.Dir(t)
	r := &reader{T: t, dir: dir, replace: strings.NewReplacer(replacements...)}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"bin/dinnerbell": envtest.Binary(t), "scripts": filepath.Join(root, "scripts"), "docs": filepath.Join(root, "docs"), "deploy": filepath.Join(root, "deploy")} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	r.env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), "HOME="+dir)
	t.Cleanup(func() {
		for _, group := range r.groups {
			_ = syscall.Kill(-group, syscall.SIGKILL)
		}
		if r.daemon != nil {
			_ = r.daemon.Wait()
		}
	})
	return r
}

// path returns the path of a file in the folder.
func (r *reader) path(name string) string { return filepath.Join(r.dir, name) }

// directive matches the comments of a block that ask the reader to act.
var directive = regexp.MustCompile(`(?m)^# (stop|kill|start) the daemon\b.*$`)

// daemonLine matches a command that runs until it is stopped: readers give it a terminal
// of its own.
var daemonLine = regexp.MustCompile(`^(?:[A-Z_]+=\S+ )*(?:bin/)?dinnerbell (?:-c \S+ )?run$`)

// runBlock carries out one block and returns what it printed.
func (r *reader) runBlock(b block) (output string) {
	r.Helper()
	text := r.replace.Replace(b.text)
	for at := directive.FindStringSubmatchIndex(text); at != nil; at = directive.FindStringSubmatchIndex(text) {
		act := text[at[2]:at[3]]
		output += r.runScript(b, text[:at[0]])
		text = text[at[1]:]
		switch act {
		case "stop":
			r.stopDaemon(syscall.SIGTERM)
		case "kill":
			r.stopDaemon(syscall.SIGKILL)
		case "start":
			r.startDaemon(r.command)
		}
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	last, _, _ := strings.Cut(lines[len(lines)-1], "  #")
	if last = strings.TrimSpace(last); daemonLine.MatchString(last) {
		output += r.runScript(b, strings.Join(lines[:len(lines)-1], "\n"))
		r.startDaemon(last)
		return output
	}
	return output + r.runScript(b, text)
}

// makeCommand matches a make command at the start of a line.
var makeCommand = regexp.MustCompile(`(?m)^make ([a-z-]+)(?: && )?`)

// withoutMake removes make commands from a script: the program is built, and the demo and
// the tests have tests of their own. Each target must exist.
func (r *reader) withoutMake(text string) string {
	r.Helper()
	makefile, err := os.ReadFile(filepath.Join(envtest.Root(r), "Makefile"))
	if err != nil {
		r.Fatal(err)
	}
	for _, m := range makeCommand.FindAllStringSubmatch(text, -1) {
		if !strings.Contains(string(makefile), "\n"+m[1]+": ") {
			r.Errorf("the Makefile has no target %s", m[1])
		}
		r.Logf("make %s is not run by this test", m[1])
	}
	return makeCommand.ReplaceAllString(text, "")
}

// runScript runs commands in bash. Variables that they export last.
func (r *reader) runScript(b block, text string) string {
	r.Helper()
	text = r.withoutMake(text)
	if strings.TrimSpace(text) == "" {
		return ""
	}
	if b.lang == "sql" {
		text = "psql -v ON_ERROR_STOP=1 \"$DATABASE\" <<'SQL'\n" + text + "\nSQL"
	}
	script := "set -euo pipefail\n[ ! -e .variables ] || . ./.variables\n" + text + "\nexport -p > \"" + r.path(".variables") + "\"\n"
	out, err := os.CreateTemp(r.dir, ".output")
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	cmd := exec.CommandContext(r.Context(), "bash", "-c", script)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = r.dir, r.env, out, out // a file: a pipe would stay open for what runs on
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	r.groups = append(r.groups, cmd.Process.Pid)
	late := time.AfterFunc(patience, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer late.Stop()
	failed := cmd.Wait()
	shown, err := os.ReadFile(out.Name())
	if err != nil {
		r.Fatal(err)
	}
	if failed != nil {
		r.Fatalf("%q, line %d: %v\n%s\nprinted:\n%s\nlog of the daemon:\n%s", b.heading, b.line, failed, text, shown, r.daemonLog())
	}
	return string(shown)
}

// startDaemon runs a daemon until stopDaemon, and waits until it is ready.
func (r *reader) startDaemon(line string) {
	r.Helper()
	if line == "" || r.daemon != nil {
		r.Fatalf("a daemon is to be started by %q, and another one runs: %t", line, r.daemon != nil)
	}
	log, err := os.OpenFile(r.path("daemon.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	environment := "[ ! -e .variables ] || . ./.variables\n"
	cmd := exec.Command("bash", "-c", environment+"exec env "+line)
	cmd.Dir, cmd.Env, cmd.Stderr = r.dir, r.env, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	r.daemon, r.command, r.groups = cmd, line, append(r.groups, cmd.Process.Pid)
	envtest.Until(r.T, patience, func() error {
		health := exec.Command("bash", "-c", environment+"exec env "+strings.TrimSuffix(line, "run")+"health")
		health.Dir, health.Env = r.dir, r.env
		if out, err := health.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s\n%s", err, out, r.daemonLog())
		}
		return nil
	})
}

// stopDaemon ends the daemon by a signal, and waits until it has ended.
func (r *reader) stopDaemon(signal syscall.Signal) {
	r.Helper()
	if r.daemon == nil {
		r.Fatal("no daemon runs that could be stopped")
	}
	if err := r.daemon.Process.Signal(signal); err != nil {
		r.Fatal(err)
	}
	if err := r.daemon.Wait(); err != nil && signal == syscall.SIGTERM {
		r.Errorf("the daemon ended with %v after SIGTERM:\n%s", err, r.daemonLog())
	}
	r.daemon = nil
}

// daemonLog returns the end of the daemons' log.
func (r *reader) daemonLog() string {
	log, _ := os.ReadFile(r.path("daemon.log")) // absent before the first start
	return string(log[max(0, len(log)-4096):])
}

var (
	digits = regexp.MustCompile(`\d+`)
	blanks = regexp.MustCompile(`\s+`)
)

// missingLine returns the first line of a shown output that a printed one lacks; "" if
// each comes, in this order, with other numbers and blanks, and any text for an ellipsis.
func missingLine(shown, printed string) string {
	rest := strings.Split(printed, "\n")
	for line := range strings.Lines(shown) {
		line = strings.TrimSpace(line)
		if line == "" || line == "…" {
			continue
		}
		pattern := digits.ReplaceAllString(regexp.QuoteMeta(line), `\d+`)
		pattern = strings.ReplaceAll(blanks.ReplaceAllString(pattern, `\s+`), "…", ".*")
		match := regexp.MustCompile(`^\s*` + pattern + `\s*$`)
		for len(rest) > 0 && !match.MatchString(rest[0]) {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			return line
		}
		rest = rest[1:]
	}
	return ""
}

// situation is what a section of a document begins with.
type situation struct {
	// prepare brings it about. It may return words of the section, such as CAMPAIGN,
	// with what stands for each of their occurrences; the last one stands for the rest.
	prepare func() map[string][]string
}

// read carries out a document: every block of sh and sql, in order. A text block behind
// one shows its output. situations are by heading.
func (r *reader) read(doc string, situations map[string]situation) {
	r.Helper()
	text, err := os.ReadFile(filepath.Join(envtest.Root(r), doc))
	if err != nil {
		r.Fatal(err)
	}
	heading, words, printed := "", map[string][]string(nil), ""
	for _, b := range readBlocks(string(text)) {
		if b.heading != heading {
			heading, words, printed = b.heading, nil, ""
			if s, ok := situations[heading]; ok {
				words = s.prepare()
				delete(situations, heading)
			}
		}
		reason, skipped := strings.CutPrefix(b.text, notRun)
		switch {
		case skipped:
			reason, _, _ = strings.Cut(reason, "\n")
			r.Logf("%s, line %d is not run: %s", doc, b.line, reason)
		case b.lang == "sh" || b.lang == "sql":
			b.text = replaceWords(b.text, words)
			printed = r.runBlock(b)
		case b.lang == "text" && printed != "":
			if line := missingLine(r.replace.Replace(b.text), printed); line != "" {
				r.Errorf("%q, line %d: the document shows\n%s\nand the block above printed\n%s", b.heading, b.line, line, printed)
			}
		}
	}
	for heading := range situations {
		r.Errorf("%s has no section %q with a block", doc, heading)
	}
}

// replaceWords replaces each occurrence of a word by the next of its values.
func replaceWords(text string, words map[string][]string) string {
	for word, values := range words {
		text = regexp.MustCompile(`\b`+regexp.QuoteMeta(word)+`\b`).ReplaceAllStringFunc(text, func(string) string {
			value := values[0]
			if len(values) > 1 {
				values = values[1:]
			}
			return value
		})
		words[word] = values
	}
	return text
}
