package status

import "fmt"

// Build identifies a binary.
type Build struct {
	Version string `json:"version"`
	Commit  string `json:"commit"` // "unknown" without version control; "+dirty" with local changes
	Go      string `json:"go"`
}

// String is the line that names the program.
func (b Build) String() string {
	return fmt.Sprintf("dinnerbell %s (commit %s, %s)", b.Version, b.Commit, b.Go)
}
