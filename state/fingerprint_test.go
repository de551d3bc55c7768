package state

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/statedir"
)

// TestDamagedManifest damages the MANIFEST at every place. A store that then
// opens is whole or fresh: never a position without its rows.
func TestDamagedManifest(t *testing.T) {
	t.Parallel()
	from := t.TempDir()
	makeStore(t, from)
	for kind, damage := range map[string]func(int) func([]byte) []byte{"flip": flip, "truncate": truncate} {
		found := map[string]int{}
		for at := 0; at < manifestLen(t, from); at += 13 {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
				t.Fatal(err)
			}
			editFile(t, filepath.Join(dir, statedir.StoreName), "MANIFEST-*", damage(at))
			found[openDamaged(t, dir)]++
		}
		t.Logf("%s: %v", kind, found)
		if found["fresh"] == 0 {
			t.Errorf("%s: no damage was seen", kind)
		}
	}
}

func manifestLen(t *testing.T, dir string) int {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(dir, statedir.StoreName, "MANIFEST-*"))
	if len(names) != 1 {
		t.Fatalf("MANIFESTs: %v", names)
	}
	info, err := os.Stat(names[0])
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Size())
}

// openDamaged opens a damaged copy of makeStore's store.
func openDamaged(t *testing.T, dir string) string {
	t.Helper()
	s, err := Open(dir, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if err := s.CheckRows(t.Context()); err != nil {
		t.Error(err)
	}
	switch n, end := s.Subscriptions(), s.EndLSN(); {
	case n == 999 && end == 8:
		return "whole"
	case n == 0 && end == 0:
		return "fresh"
	default:
		t.Errorf("%d rows at %s", n, end)
		return "neither"
	}
}

// TestCheckRows: CheckRows finds one changed row in either index and marks the store as
// corrupt.
func TestCheckRows(t *testing.T) {
	t.Parallel()
	join := appendJoinKey(nil, 1, makeIDs(1, 1)[0], makeIDs(1, 2)[0], rowN(1))
	entry := appendRowKey(nil, 1, rowN(1))
	other := storedRow{makeIDs(1, 1)[0], makeIDs(2, 2)[1], true}.appendValue(nil)
	for name, harm := range map[string]func(db *pebble.DB) error{
		"lost join key": func(db *pebble.DB) error { return db.Delete(join, nil) },
		"lost row":      func(db *pebble.DB) error { return db.Delete(entry, nil) },
		"stale row":     func(db *pebble.DB) error { return db.Set(entry, other, nil) },
		"bad row":       func(db *pebble.DB) error { return db.Set(entry, []byte{7}, nil) },
		"empty row":     func(db *pebble.DB) error { return db.Set(entry, nil, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s, err := Open(dir, testOptions())
			if err != nil {
				t.Fatal(err)
			}
			fillRestaurant(t, s, 1, makeIDs(1, 1)[0], makeIDs(3, 2), 1)
			if err := errors.Join(s.CheckRows(t.Context()), harm(s.db)); err != nil {
				t.Fatal(err)
			}
			if err := s.CheckRows(t.Context()); !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v, want ErrCorrupt", err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if s = openStore(t, dir, testOptions()); s.EndLSN() != 0 {
				t.Error("the store is in use again")
			}
		})
	}
}
