package pebblecheck

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// quietLogger discards Pebble's messages.
type quietLogger struct{ pebble.Logger }

// Infof implements pebble.Logger.
func (quietLogger) Infof(string, ...any) {}

// openReadOnly opens the store and returns it with its listing.
func openReadOnly(t *testing.T, fs vfs.FS) (*pebble.DB, []string) {
	t.Helper()
	db, err := pebble.Open("store", &pebble.Options{FS: fs, Logger: quietLogger{pebble.DefaultLogger}, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	names, err := fs.List("store")
	if err != nil {
		t.Fatal(err)
	}
	return db, names
}

// crashedStore returns a disk with a store that ended while rows lay in its log.
func crashedStore(t *testing.T) *vfs.MemFS {
	t.Helper()
	mem := vfs.NewCrashableMem()
	db, err := pebble.Open("store", &pebble.Options{FS: mem, Logger: quietLogger{pebble.DefaultLogger}})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"a", "b", "c"} {
		if err := db.Set([]byte(key), []byte(strings.Repeat(key, 100)), pebble.Sync); err != nil {
			t.Fatal(err)
		}
		if key == "b" {
			if err := db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	crashed := mem.CrashClone(vfs.CrashCloneCfg{})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return crashed
}

// A store that ended without a Close has no hole; a table that the MANIFEST does not
// name may be one.
func TestMayHaveHole(t *testing.T) {
	t.Parallel()
	for _, stray := range []bool{false, true} {
		disk := crashedStore(t)
		if stray {
			names, err := disk.List("store")
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if strings.HasSuffix(name, ".sst") {
					if err := vfs.Copy(disk, "store/"+name, "store/900000.sst"); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		db, names := openReadOnly(t, disk)
		if hole, err := MayHaveHole(disk, "store", names, db); err != nil || hole != stray {
			t.Errorf("stray table %v: may have a hole: %v, %v", stray, hole, err)
		}
	}
}

// Only failed writes of a log or of its folder are reported, and the error that is
// returned instead comes back.
func TestWatchLog(t *testing.T) {
	t.Parallel()
	disk, fail := errors.New("no disk"), false
	broken := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if fail && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return disk
		}
		return nil
	}))
	var reported []string
	other := errors.New("reported")
	fs := WatchLog(broken, func(what string, err error) error {
		if !errors.Is(err, disk) {
			t.Errorf("%s: reported %v", what, err)
		}
		reported = append(reported, what)
		return other
	})
	log, err := fs.Create("000002.log", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	table, err := fs.Create("000003.sst", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	fail = true
	if _, err := log.Write([]byte("x")); !errors.Is(err, other) {
		t.Errorf("write log: %v", err)
	}
	if err := log.Sync(); !errors.Is(err, other) {
		t.Errorf("sync log: %v", err)
	}
	if _, err := table.Write([]byte("x")); !errors.Is(err, disk) {
		t.Errorf("write table: %v", err)
	}
	if _, err := fs.Create("000004.log", vfs.WriteCategoryUnspecified); !errors.Is(err, other) {
		t.Errorf("make log: %v", err)
	}
	if got := strings.Join(reported, ", "); got != "write log, sync log, make log" {
		t.Errorf("reported: %s", got)
	}
}

func TestIsPebbleStore(t *testing.T) {
	t.Parallel()
	for names, want := range map[string]bool{
		"": false, "LOCK 000002.log": false, "OPTIONS-000003": false,
		"MANIFEST-000001": true, "CURRENT": true, "a marker.manifest.000001.MANIFEST-000001": true,
	} {
		if got := IsPebbleStore(strings.Fields(names)); got != want {
			t.Errorf("%q: %v, want %v", names, got, want)
		}
	}
}
