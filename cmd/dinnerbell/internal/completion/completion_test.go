package completion

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

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

// Each shell at hand takes the script, and bash gives the program's words.
func TestScripts(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "dinnerbell"), []byte("#!/bin/sh\necho \"$@\" > "+dir+"/asked; printf 'one\\ntwo\\n'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ask := map[string]string{
		"bash": "COMP_WORDS=(dinnerbell status --j); COMP_CWORD=2; _dinnerbell; echo ${COMPREPLY[@]}",
		"zsh":  "",
		"fish": "complete -C 'dinnerbell status --j'",
	}
	for _, shell := range Shells() {
		t.Run(shell, func(t *testing.T) {
			path, err := exec.LookPath(shell)
			if err != nil {
				t.Skipf("%s is not installed here", shell)
			}
			script, err := Script(shell)
			if err != nil {
				t.Fatal(err)
			}
			if shell == "zsh" {
				script = "autoload -U compinit; compinit -D; " + script
			}
			cmd := exec.CommandContext(t.Context(), path, "-c", script+"\n"+ask[shell])
			cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if ask[shell] == "" {
				return
			}
			if asked, _ := os.ReadFile(filepath.Join(dir, "asked")); string(asked) != Command+" -- status --j\n" {
				t.Errorf("the program was asked %q", asked)
			}
			if !strings.Contains(strings.Join(strings.Fields(string(out)), " "), "one two") && shell == "bash" {
				t.Errorf("the answer became %q", out)
			}
		})
	}
	if _, err := Script("tcsh"); err == nil {
		t.Error("a script for tcsh")
	}
}
