package status

// Build identifies a binary.
type Build struct {
	Version string `json:"version"`
	Commit  string `json:"commit"` // "unknown" without version control; "+dirty" with local changes
	Go      string `json:"go"`
}
