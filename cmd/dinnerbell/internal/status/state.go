package status

// Conditions of the local state.
const (
	conditionOK = "ok"
	Rebuilding  = "rebuilding" // it was damaged; campaigns wait for a new snapshot
	DiskFull    = "disk_full"  // the reserve is touched; changes of the subscriptions wait
)

// stateReport is the status of the local store.
type stateReport struct {
	Condition string `json:"condition"`
	// FreeBytes of the disk, of which ReserveBytes stay unused.
	FreeBytes    int64 `json:"free_bytes"`
	ReserveBytes int64 `json:"reserve_bytes"`
	// SizeBytes is the size of the local store, without files that only checkpoints hold.
	SizeBytes int64 `json:"size_bytes"`
	// Quarantines is how many stores were set aside since the daemon started,
	// including one at its start.
	Quarantines int64 `json:"quarantines"`
	// Quarantine is the folder of the last damaged store, and Damage the reason.
	Quarantine string `json:"quarantine,omitempty"`
	Damage     string `json:"damage,omitempty"`
}
