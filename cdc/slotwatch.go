package cdc

import (
	"cmp"

	"dinnerbell/cdc/source"
	"dinnerbell/state/id"
)

// heldBackWarn is how much WAL a slot may make the server keep before it is
// said: enough to be worth a look on a small disk, more than a restart costs.
const heldBackWarn = 1 << 30

// recordSlot takes over what pg_replication_slots says, and warns when it gets
// dangerous: once each time, so that a log is not filled.
func (m *Mirror) recordSlot(slot source.SlotStatus, walEnd id.LSN) {
	held := int64(0)
	if slot.Restart != 0 && walEnd > slot.Restart {
		held = int64(walEnd - slot.Restart)
	}
	s := &m.stats
	s.safeWALSize.Store(slot.SafeWALSize)
	s.keepSize.Store(slot.KeepSize)
	before := s.slotHeld.Swap(held)
	s.mu.Lock()
	was := s.walStatus
	s.walStatus = slot.WALStatus
	s.mu.Unlock()

	much := cmp.Or(m.hooks.warnHeld, heldBackWarn)
	attrs := []any{"slot", m.cfg.Slot, "wal_status", slot.WALStatus, "held_bytes", held, "safe_wal_size", slot.SafeWALSize}
	switch {
	case slot.WALStatus == source.SlotUnreserved && was != source.SlotUnreserved:
		m.log.Warn("the slot may lose its WAL at the server's next checkpoint: it is behind by more than max_slot_wal_keep_size", attrs...)
	case slot.WALStatus == source.SlotLost && was != source.SlotLost:
		m.log.Error("the slot is lost", append(attrs, "why", slot.LossReason())...)
	case held >= much && before < much:
		m.log.Warn("the server keeps much WAL for the slot: nobody has read it for a while, or slowly", attrs...)
	}
}
