package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"dinnerbell/cmd/dinnerbell/internal/status"
)

// Set by the build: -ldflags "-X main.version=v1.2.3 -X main.commit=0123abc".
// Without them, as after `go install`, Go's own record of the commit is used.
var (
	version = "dev"
	commit  string
)

// versionCmd shows the version of this binary.
type versionCmd struct {
	JSON bool `help:"As JSON."`
}

// thisBuild returns the version and commit that the build put into the binary.
func thisBuild() status.Build {
	b := status.Build{Version: version, Commit: "unknown", Go: runtime.Version()}
	if commit != "" {
		b.Commit = commit
		return b
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	dirty := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty && b.Commit != "unknown" {
		b.Commit += "+dirty"
	}
	return b
}

// Help shows how it is used.
func (*versionCmd) Help() string {
	return `Example:
  dinnerbell version --json`
}

// Run prints the version.
func (c *versionCmd) Run(a *invocation) error {
	b := thisBuild()
	if c.JSON {
		return printJSON(a, b)
	}
	_, err := fmt.Fprintln(a.stdout, b)
	return err
}

// printJSON writes v as one line to standard output.
func printJSON(a *invocation, v any) error {
	if err := json.NewEncoder(a.stdout).Encode(v); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}
