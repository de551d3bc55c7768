package completion

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

// line is a command line with everything that completion meets.
type line struct {
	Config string `short:"c"`
	Quiet  bool   `short:"q"`

	Status struct {
		Format string `enum:"text,json" default:"text"`
	} `cmd:""`
	Checkpoint struct {
		Create  struct{} `cmd:""`
		Restore struct {
			ID string `arg:""`
		} `cmd:""`
	} `cmd:""`
	Completion struct {
		Shell string `arg:"" enum:"bash,zsh,fish"`
	} `cmd:""`
	Secret struct{} `cmd:"" hidden:""`
}

func TestWords(t *testing.T) {
	parser, err := kong.New(&line{})
	if err != nil {
		t.Fatal(err)
	}
	for words, want := range map[string]string{
		"":                         "checkpoint completion status",
		"s":                        "status",
		"x":                        "",
		"checkpoint ":              "create restore",
		"checkpoint r":             "restore",
		"checkpoint restore ":      "",
		"completion ":              "bash fish zsh",
		"completion z":             "zsh",
		"completion zsh ":          "",
		"status --":                "--config --format --help --quiet",
		"status --f":               "--format",
		"status --format ":         "json text",
		"status --format j":        "json",
		"status --format=j":        "--format=json",
		"-c status ":               "checkpoint completion status", // status is the file's name
		"-q status --format ":      "json text",
		"--config=x status --fo":   "--format",
		"status --format json --q": "--quiet",
	} {
		if got := strings.Join(Words(parser.Model, strings.Split(words, " ")), " "); got != want {
			t.Errorf("after %q: %q, want %q", words, got, want)
		}
	}
}

// program is a dinnerbell that knows two words.
const program = `#!/bin/sh
case "$*" in
"__complete -- checkp") echo checkpoint ;;
"__complete -- status --j") echo --json ;;
"__complete -- ch") printf 'checkpoint\ncheck\n' ;;
esac
`

// shellAt prepares a folder for a shell: the program, a file, and the script, also as the
// file that a package installs for zsh. Without the shell the test is skipped.
func shellAt(t *testing.T, shell string) (dir string, run func(code string) (output string)) {
	t.Helper()
	path, err := exec.LookPath(shell)
	if err != nil {
		t.Skipf("%s is not installed here: its completion is not tested", shell)
	}
	script, err := Script(shell)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "functions"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"dinnerbell": program, "my file.yaml": "", "checked": "", "script": script, "functions/_dinnerbell": script} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir, func(code string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, path, map[string]string{"bash": "--norc", "zsh": "-f", "fish": "--no-config"}[shell], "-c", code)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir, "TERM=dumb")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
}

func TestBash(t *testing.T) {
	t.Parallel()
	_, run := shellAt(t, "bash")
	if got := run("source ./script; COMP_WORDS=(dinnerbell ch); COMP_CWORD=1; _dinnerbell; echo ${COMPREPLY[@]}"); got != "checkpoint check\n" {
		t.Errorf("%q", got)
	}
}

// The words of the program come alone, and file names where it has none: also behind the =
// of a flag.
func TestFish(t *testing.T) {
	t.Parallel()
	_, run := shellAt(t, "fish")
	for typed, want := range map[string]string{
		"dinnerbell ch":             "checkpoint\ncheck\n",
		"dinnerbell status --j":     "--json\n",
		"dinnerbell -c my":          "my file.yaml\n",
		"dinnerbell --config=my":    "--config=my file.yaml\n",
		"dinnerbell preview functi": "functions/\n",
	} {
		got := strings.Fields(run("source ./script; complete -C '" + typed + "'"))
		wanted := strings.Fields(want)
		slices.Sort(got)
		slices.Sort(wanted)
		if !slices.Equal(got, wanted) {
			t.Errorf("%s: %q, want %q", typed, got, want)
		}
	}
}

// zshSession types lines into an interactive zsh, whose completion was switched on by
// %s, and writes each line as it is after its completion.
const zshSession = `zmodload zsh/zpty
zpty session zsh -f -i
zpty -w session 'PS1=; unsetopt zle_bracketed_paste; fpath=(./functions $fpath); autoload -U compinit; compinit -D -u; %s; complete-and-note() { zle complete-word; print -r -- "$BUFFER" >> noted; BUFFER=; }; zle -N complete-and-note; bindkey "^X" complete-and-note; print "BEG""UN"'
while zpty -r session line; do [[ $line = *BEGUN* ]] && break; done
expected=0
while read -r typed; do
  zpty -w -n session "$typed"$'\x18'
  (( expected++ ))
  for try in {1..600}; do
    [[ -e noted && $(wc -l < noted) -ge $expected ]] && break
    sleep 0.05
  done # with the waiting
done < typed
zpty -d session
cat noted`

// Both ways to switch the completion on give the same: the code in ~/.zshrc, and the file
// that a package installs, which has to answer at its first call.
func TestZsh(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]string{"sourced": "source ./script", "installed": "true"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, run := shellAt(t, "zsh")
			var typed, want strings.Builder
			for _, line := range [][2]string{
				{"dinnerbell checkp", "dinnerbell checkpoint "}, {"dinnerbell status --j", "dinnerbell status --json "}, {"dinnerbell -c my", `dinnerbell -c my\ file.yaml `},
				{"dinnerbell --config=my", `dinnerbell --config=my\ file.yaml `}, {"dinnerbell preview func", "dinnerbell preview functions/"},
			} {
				typed.WriteString(line[0] + "\n")
				want.WriteString(line[1] + "\n")
			}
			if err := os.WriteFile(filepath.Join(dir, "typed"), []byte(typed.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := run(strings.Replace(zshSession, "%s", begin, 1)); got != want.String() {
				t.Errorf("got\n%swant\n%s", got, want.String())
			}
		})
	}
}

func TestNoScript(t *testing.T) {
	t.Parallel()
	if _, err := Script("tcsh"); err == nil {
		t.Error("a script for tcsh")
	}
}
