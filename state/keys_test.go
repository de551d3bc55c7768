package state

import (
	"errors"
	"slices"
	"testing"
)

func TestPrefixEnd(t *testing.T) {
	t.Parallel()
	for prefix, want := range map[string]string{"a": "b", "a\xff": "b", "a\x00": "a\x01", "\x10\xff\xff": "\x11"} {
		if got := string(prefixEnd(nil, []byte(prefix))); got != want {
			t.Errorf("prefixEnd(%x) = %x, want %x", prefix, got, want)
		}
	}
}

func TestRecordDamage(t *testing.T) {
	t.Parallel()
	want := stateRecord{gen: 7, end: 1 << 40, rows: 12, torn: true}
	good := want.encodeRecord()
	if got, err := parseRecord(good); err != nil || got != want {
		t.Fatalf("parseRecord = %+v, %v; want %+v", got, err, want)
	}
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 0x40
		if _, err := parseRecord(bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("a changed byte %d is not seen: %v", i, err)
		}
	}
	if _, err := parseRecord(nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a missing record is not seen: %v", err)
	}
}
