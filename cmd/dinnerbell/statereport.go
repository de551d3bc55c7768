package main

import (
	"fmt"

	"dinnerbell/cmd/dinnerbell/internal/terminal"
)

// Conditions of the local state.
const (
	conditionOK         = "ok"
	conditionRebuilding = "rebuilding" // it was damaged; campaigns wait for a new snapshot
	conditionDiskFull   = "disk_full"  // the reserve is touched; changes of the subscriptions wait
)

// stateReport is the local store.
type stateReport struct {
	Condition string `json:"condition"`
	// FreeBytes of the disk, and ReserveBytes of them that are left alone.
	FreeBytes    int64 `json:"free_bytes"`
	ReserveBytes int64 `json:"reserve_bytes"`
	// Quarantines is how many stores were set aside since the daemon started, the
	// one that it may have found at its start included.
	Quarantines int64 `json:"quarantines"`
	// Quarantine is where the last of them is, and Damage what was wrong with it.
	Quarantine string `json:"quarantine,omitempty"`
	Damage     string `json:"damage,omitempty"`
}

// reportState adds the local state to a report, and what it means for the rest.
func (d *daemon) reportState(r *report, h *engine, complete bool) {
	r.State.Quarantines = d.damage.count()
	if disk, ok := h.store.Disk(); ok {
		r.State.FreeBytes, r.State.ReserveBytes = disk.Free, disk.Reserve
		if disk.Short() {
			r.State.Condition = conditionDiskFull
			r.Reasons = append(r.Reasons, fmt.Sprintf("state: the disk is almost full: %s are free in %s%s and %s are kept in reserve (state.reserve); changes of the subscriptions wait until there is room",
				terminal.Bytes(disk.Free), d.cfg.State.Dir, filesystemOf(d.cfg.State.Dir), terminal.Bytes(disk.Reserve)))
		}
	}
	aside, was := h.store.SetAside()
	if was {
		r.State.Quarantine, r.State.Damage = aside.Dir, oneLine(aside.Reason)
		if !complete {
			r.State.Condition = conditionRebuilding
			r.Reasons = append(r.Reasons, fmt.Sprintf("state: rebuilding: the local state was damaged and set aside to %s: %s", aside.Dir, r.State.Damage))
		}
	}
	if err := h.store.Damage(); err != nil {
		// The mirror has stopped because of it. That is no halt: new halves follow.
		r.State.Condition, r.State.Damage = conditionRebuilding, oneLine(err.Error())
		r.Source.State, r.Halted = conditionRebuilding, nil
		r.Reasons = append(r.Reasons, "state: rebuilding: the local state is damaged and is being set aside: "+r.State.Damage)
	}
}
