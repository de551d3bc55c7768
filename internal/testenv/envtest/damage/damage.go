// Package damage falsifies the local state behind the daemon's back, for tests
// of the detection and repair of such damage. It writes single keys in the
// format of state/format.go, so that every checksum is right and only the rows
// are wrong.
package damage

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// Rows is the store of a state directory. Rows are named as Postgres writes
// their keys.
type Rows struct {
	t   testing.TB
	db  *pebble.DB
	gen uint32
}

// The keyspaces of state/format.go.
const (
	spaceJoin = 0x10
	spaceRow  = 0x20
)

// Do opens the store in stateDir, which no other process has open, calls do to
// change it, and closes it.
func Do(t testing.TB, stateDir string, do func(d *Rows)) {
	t.Helper()
	db, err := pebble.Open(filepath.Join(stateDir, "store"), &pebble.Options{FormatMajorVersion: pebble.FormatNewest, Logger: silentLogger{}})
	if err != nil {
		t.Fatal(err)
	}
	value, closer, err := db.Get([]byte("\x00state"))
	if err != nil {
		t.Fatal(err)
	}
	d := &Rows{t: t, db: db, gen: binary.BigEndian.Uint32(value)}
	d.mustSucceed(closer.Close())
	do(d)
	d.mustSucceed(db.Close())
}

// silentLogger keeps Pebble's messages out of the test's output.
type silentLogger struct{}

// Infof implements pebble.Logger.
func (silentLogger) Infof(string, ...any) {}

// Errorf implements pebble.Logger.
func (silentLogger) Errorf(string, ...any) {}

// Fatalf implements pebble.Logger.
func (silentLogger) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...)) //nolint:forbidigo // Pebble requires that it does not return
}

// SetRow puts a row into the row index.
func (d *Rows) SetRow(row, restaurant, client string) {
	d.t.Helper()
	d.mustSucceed(d.db.Set(d.rowKey(row), []byte(d.packID(restaurant)+d.packID(client)), pebble.Sync))
}

// DropRow removes a row from the row index.
func (d *Rows) DropRow(row string) {
	d.t.Helper()
	d.mustSucceed(d.db.Delete(d.rowKey(row), pebble.Sync))
}

// SetJoin puts an entry into the join index.
func (d *Rows) SetJoin(row, restaurant, client string) {
	d.t.Helper()
	d.mustSucceed(d.db.Set(d.joinKey(row, restaurant, client), nil, pebble.Sync))
}

// DropJoin removes an entry from the join index.
func (d *Rows) DropJoin(row, restaurant, client string) {
	d.t.Helper()
	d.mustSucceed(d.db.Delete(d.joinKey(row, restaurant, client), pebble.Sync))
}

// DropAll empties both indexes.
func (d *Rows) DropAll() {
	d.t.Helper()
	for _, space := range []byte{spaceJoin, spaceRow} {
		d.mustSucceed(d.db.DeleteRange(d.encodeKey(space), d.encodeKey(space+1), pebble.Sync))
	}
}

func (d *Rows) mustSucceed(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *Rows) rowKey(row string) []byte { return d.encodeKey(spaceRow, string(id.PackRow(row))) }

func (d *Rows) joinKey(row, restaurant, client string) []byte {
	return d.encodeKey(spaceJoin, d.packID(restaurant), d.packID(client), string(id.PackRow(row)))
}

func (d *Rows) encodeKey(space byte, parts ...string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{space}, d.gen), strings.Join(parts, "")...)
}

func (d *Rows) packID(text string) string {
	d.t.Helper()
	id, err := id.Pack(text)
	d.mustSucceed(err)
	return string(id)
}
