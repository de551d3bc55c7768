package cdc

import (
	"strings"
	"testing"

	"dinnerbell/cdc/source"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

// situation is what decide judges.
type situation struct {
	stored                  state.Source
	complete, inTransaction bool
	durable                 id.LSN
	cat                     source.Catalog
	past                    source.Lineage
	slot                    source.SlotStatus
}

func TestDecide(t *testing.T) {
	t.Parallel()
	stored := state.Source{SystemID: "1", Timeline: 1, Database: "d", Slot: "s", Publication: "p", PublicationOID: 5, Schema: "public", Table: "t", TableOID: 6, Catalog: "table 6;kind r"}
	promoted := func(s *situation, end id.LSN) {
		s.past = source.Lineage{{Timeline: 1, End: end}}
		s.cat.Source.Timeline, s.cat.Source.History = 2, s.past.String()
	}
	for _, c := range []struct {
		want   string
		change func(s *situation)
	}{
		{"", func(*situation) {}},
		{"no complete snapshot", func(s *situation) { s.complete = false }},
		{"another one (system id", func(s *situation) { s.cat.Source.SystemID = "2" }},
		{"table public.t was made again", func(s *situation) { s.cat.Source.TableOID = 7 }},
		{"publication p was made again", func(s *situation) { s.cat.Source.PublicationOID = 7 }},
		{"the source is another one", func(s *situation) { s.cat.Source.Database = "e" }},
		{"does not exist", func(s *situation) { s.slot.Exists = false }},
		{"(wal_status lost: it was behind by more than max_slot_wal_keep_size)", func(s *situation) { s.slot.WALStatus = "lost" }},
		{"idle_replication_slot_timeout", func(s *situation) { s.slot.WALStatus, s.slot.Invalid = "lost", "idle_timeout" }},
		{"invalidated: wal_level_insufficient", func(s *situation) { s.slot.Invalid = "wal_level_insufficient" }},
		{"lost WAL", func(s *situation) { s.slot.Restart = 0 }},
		{"", func(s *situation) { s.slot.WALStatus = "unreserved" }},
		{"ahead of the local state", func(s *situation) { s.slot.Confirmed = 101 }},
		{"", func(s *situation) { s.slot.Confirmed = 100 }},
		{"restored from a backup", func(s *situation) { s.cat.WALEnd = 99 }},

		// Promotions: the log is one up to where the timelines part, and not behind it.
		{"", func(s *situation) { promoted(s, 100) }},
		{"promoted or restored (timeline 2) as of 0/63, without what was applied here up to 0/64", func(s *situation) { promoted(s, 99) }},
		{"a transaction was applied here in part", func(s *situation) { promoted(s, 110); s.inTransaction = true }},
		{"", func(s *situation) { s.inTransaction = true }},
		{"slot s does not exist on the server that was promoted", func(s *situation) { promoted(s, 110); s.slot.Exists = false }},
		{"ahead of the local state", func(s *situation) { promoted(s, 110); s.slot.Confirmed = 105 }},
		{"table public.t was made again", func(s *situation) { promoted(s, 110); s.cat.Source.TableOID = 7 }},
		{"another branch", func(s *situation) { s.stored.Timeline, s.stored.History = 2, "1 0/63;" }}, // back on the former primary
		{"another branch", func(s *situation) { // two standbys were promoted, both to 2
			promoted(s, 90)
			s.stored.Timeline, s.stored.History = 2, "1 0/50;"
		}},
		{"another branch", func(s *situation) { // and one of them had a standby
			s.past = source.Lineage{{Timeline: 1, End: 90}, {Timeline: 2, End: 110}}
			s.cat.Source.Timeline, s.cat.Source.History = 3, s.past.String()
			s.stored.Timeline, s.stored.History = 2, "1 0/50;"
		}},
		{"", func(s *situation) { // two promotions, both behind us
			s.past = source.Lineage{{Timeline: 1, End: 100}, {Timeline: 2, End: 110}}
			s.cat.Source.Timeline, s.cat.Source.History = 3, s.past.String()
		}},
		{"", func(s *situation) { // and one of them already followed
			s.past = source.Lineage{{Timeline: 1, End: 50}, {Timeline: 2, End: 110}}
			s.cat.Source.Timeline, s.cat.Source.History = 3, s.past.String()
			s.stored.Timeline, s.stored.History = 2, "1 0/32;"
		}},
	} {
		s := situation{
			stored: stored, complete: true, durable: 100, cat: source.Catalog{Source: stored, WALEnd: 120},
			slot: source.SlotStatus{Exists: true, Confirmed: 90, Restart: 80, WALStatus: "reserved"},
		}
		c.change(&s)
		_, got := snapshotReason(s.stored, s.complete, s.durable, s.inTransaction, &s.cat, s.past, s.slot)
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("decided %q, want %q", got, c.want)
		}
	}
}
