package state

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// The format record, written when the store is made and never changed:
//
//	┌──────────────┬─────────────┐
//	│ "DINNERBELL" │ version u32 │
//	└──────────────┴─────────────┘
//
// A store without the record is not dinnerbell's ([ErrForeign]); a newer dinnerbell
// wrote a store with a higher version ([ErrNewerFormat]). Open changes neither. It
// upgrades a store that is one version older, and sets older stores aside for a
// rebuild.
//
// For a new version: raise the number, write the upgrade from the version before, and
// keep a store of the new version in testdata (see golden_test.go).
const formatMagic = "DINNERBELL"

// storeFormat is the version that a program writes, and its upgrade of the version
// before.
type storeFormat struct {
	version uint32
	// upgrade adds the writes to a batch that turn a store of version-1 into a store
	// of version; the format record is in the same batch. nil: there is no store of
	// version-1, or it is rebuilt. Not for rows by the million: a batch is held in
	// memory.
	upgrade func(db *pebble.DB, batch *pebble.Batch) error
}

// currentFormat is the format of this program. Version 1 is the first.
var currentFormat = storeFormat{version: 1}

// upgradeStore upgrades an open store of version found, in one durable write, and then
// reads all rows to check that none is missing.
func (f storeFormat) upgradeStore(ctx context.Context, db *pebble.DB, found uint32) error {
	if found == f.version {
		return nil
	}
	b := db.NewBatch()
	defer b.Close()
	if err := errors.Join(f.upgrade(db, b), b.Set(keyFormat, encodeFormat(f.version), nil)); err != nil {
		return fmt.Errorf("upgrade state from format %d: %w", found, err)
	}
	if err := b.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("upgrade state from format %d: %w", found, err)
	}
	r, _, _, err := loadMeta(db)
	if err != nil {
		return err
	}
	return checkStoredRows(ctx, db, r)
}

// The state record. Every batch that changes rows or the position rewrites it, so that
// the rows and the LSN of which they are the state are one write:
//
//	┌─────────┬─────────┬──────────┬─────────┬──────┬─────────┐
//	│ gen u32 │ end u64 │ rows u64 │ sum u64 │ torn │ crc u32 │
//	└─────────┴─────────┴──────────┴─────────┴──────┴─────────┘
//
// rows is the number of subscriptions, sum the fingerprint of all rows
// (fingerprint.go). torn is 1 while a transaction is applied in parts, 2 if the
// subscription log has the entries of the batch that wrote the record, and else 0. Of the
// batch that wrote a 1, the log record tells (logformat.go).
//
// The checksum (CRC-32C of the preceding bytes) guards against mistakes of this
// program; Pebble checks its blocks itself.
type stateRecord struct {
	gen  uint32
	end  id.LSN
	rows int64
	sum  uint64
	torn bool
	// logged is not stored while torn is set.
	logged bool
}

// The values of torn.
const (
	recordTorn   = 1
	recordLogged = 2
)

const recordLen = 4 + 8 + 8 + 8 + 1 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (r stateRecord) encodeRecord() []byte { return r.appendRecord(make([]byte, 0, recordLen)) }

func (r stateRecord) appendRecord(b []byte) []byte {
	from := len(b)
	b = binary.BigEndian.AppendUint32(b, r.gen)
	b = binary.BigEndian.AppendUint64(b, uint64(r.end))
	b = binary.BigEndian.AppendUint64(b, uint64(r.rows))
	b = binary.BigEndian.AppendUint64(b, r.sum)
	torn := byte(0)
	switch {
	case r.torn:
		torn = recordTorn
	case r.logged:
		torn = recordLogged
	}
	b = append(b, torn)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[from:], castagnoli))
}

func parseRecord(b []byte) (stateRecord, error) {
	if len(b) != recordLen || crc32.Checksum(b[:recordLen-4], castagnoli) != binary.BigEndian.Uint32(b[recordLen-4:]) {
		return stateRecord{}, fmt.Errorf("read state record %x: %w", b, ErrCorrupt)
	}
	return stateRecord{
		gen:  binary.BigEndian.Uint32(b),
		end:  id.LSN(binary.BigEndian.Uint64(b[4:])),
		rows: int64(binary.BigEndian.Uint64(b[12:])),
		sum:  binary.BigEndian.Uint64(b[20:]),
		torn: b[28] == recordTorn, logged: b[28] == recordLogged,
	}, nil
}

func encodeFormat(version uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte(formatMagic), version)
}

// checkFormat returns the version in the format record. It returns 0 for an empty
// store: a crash may come before the record is written. A version that this program
// can neither read nor upgrade is an error.
func (f storeFormat) checkFormat(db *pebble.DB) (found uint32, err error) {
	value, err := getCopy(db, keyFormat)
	if err != nil {
		return 0, err
	}
	if value == nil {
		empty, err := isEmptyStore(db)
		if err != nil || empty {
			return 0, err
		}
		return 0, fmt.Errorf("a Pebble store without dinnerbell's mark: %w", ErrForeign)
	}
	version, ok := bytes.CutPrefix(value, []byte(formatMagic))
	if !ok || len(version) != 4 {
		return 0, fmt.Errorf("a Pebble store with the mark %.40q: %w", value, ErrForeign)
	}
	found = binary.BigEndian.Uint32(version)
	switch {
	case found > f.version:
		return 0, newerFormatError("format", found, f.version)
	case found == 0 || found < f.version && (found+1 < f.version || f.upgrade == nil):
		return 0, fmt.Errorf("it has format %d, which this dinnerbell does not read any more", found)
	}
	return found, nil
}

func newerFormatError(what string, found, known uint32) error {
	return fmt.Errorf("%w: it has %s %d, this dinnerbell reads up to %d", ErrNewerFormat, what, found, known)
}

// withWriterVersion adds to an [ErrNewerFormat] which program to start. writer is the
// version of that program, "" if it is not known.
func withWriterVersion(writer string, err error) error {
	if !errors.Is(err, ErrNewerFormat) {
		return err
	}
	start := "start the newer dinnerbell"
	if writer != "" {
		start = "dinnerbell " + writer + " wrote it: start that one"
	}
	return fmt.Errorf("%w; %s, or move the directory away to have it rebuilt", err, start)
}

// loadMeta reads the state record and the source. ok is false if no load was
// ever finished.
func loadMeta(db *pebble.DB) (r stateRecord, src Source, ok bool, err error) {
	value, err := getCopy(db, keyState)
	if err != nil {
		return r, src, false, err
	}
	if r, err = parseRecord(value); err != nil {
		return r, src, false, err
	}
	if value, err = getCopy(db, keySource); err != nil || value == nil {
		return r, src, false, err
	}
	if err := json.Unmarshal(value, &src); err != nil {
		return r, src, false, fmt.Errorf("read source record: %w: %w", ErrCorrupt, err)
	}
	return r, src, true, nil
}

// getCopy returns a copy of the value of key, nil if there is none.
func getCopy(r pebble.Reader, key []byte) ([]byte, error) {
	value, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read key %x: %w", key, err)
	}
	value = append([]byte{}, value...)
	return value, closer.Close()
}

func isEmptyStore(db *pebble.DB) (bool, error) {
	it, err := db.NewIter(nil)
	if err != nil {
		return false, fmt.Errorf("look into store: %w", err)
	}
	found := it.First()
	return !found, errors.Join(it.Error(), it.Close())
}

// The keyspaces of the store. Keys compare bytewise; integers are big-endian;
// ids and row ids are packed (see [id.ID], [id.RowID]); "gen" is the generation, the
// number of the load with which the rows came.
//
//	key                                               value
//	┌────┬──────┐
//	│ 00 │ name │                                     "format", "state": see above
//	└────┴──────┘                                     "source": JSON of Source; "log": see logformat.go
//	┌────┬────────┬────────────┬────────┬─────┐
//	│ 10 │ gen u32│ restaurant │ client │ row │       empty; one per subscription row:
//	└────┴────────┴────────────┴────────┴─────┘       the join is a scan of one prefix
//	┌────┬────────┬─────┐                             ┌────────────┬────────┐
//	│ 20 │ gen u32│ row │                             │ restaurant │ client │ or 00 for NULL
//	└────┴────────┴─────┘                             └────────────┴────────┘
//	┌────┬──────┬────────┐
//	│ 30 │ name │ client │                             empty; delivered pairs, in the order
//	└────┴──────┴────────┘                            of the join
//	08, 09: the subscription log, see logformat.go
//
// Ids delimit themselves and none is a prefix of another, so concatenation
// sorts by the first id, then the second. Row ids come last and need no end.
const (
	spaceMeta      = 0x00
	spaceJoin      = 0x10
	spaceRow       = 0x20
	spaceDelivered = 0x30
)

// nullID stands for NULL in the value of a row. No packed id begins with it.
const nullID = 0x00

// genLen is the length of the prefix that all keys of one generation share.
const genLen = 5

// Meta keys.
var (
	keyFormat = []byte{spaceMeta, 'f', 'o', 'r', 'm', 'a', 't'}
	keyState  = []byte{spaceMeta, 's', 't', 'a', 't', 'e'}
	keySource = []byte{spaceMeta, 's', 'o', 'u', 'r', 'c', 'e'}
)

func appendGen(dst []byte, space byte, gen uint32) []byte {
	return binary.BigEndian.AppendUint32(append(dst, space), gen)
}

// genSpan returns the half-open range of all keys of one generation in one keyspace.
func genSpan(space byte, gen uint32) (start, end []byte) {
	start = appendGen(nil, space, gen)
	return start, prefixEnd(nil, start)
}

func appendJoinPrefix(dst []byte, gen uint32, restaurant id.ID) []byte {
	return append(appendGen(dst, spaceJoin, gen), restaurant...)
}

func appendJoinKey(dst []byte, gen uint32, restaurant, client id.ID, row id.RowID) []byte {
	dst = appendJoinPrefix(dst, gen, restaurant)
	return append(append(dst, client...), row...)
}

func appendRowKey(dst []byte, gen uint32, row id.RowID) []byte {
	return append(appendGen(dst, spaceRow, gen), row...)
}

func appendDeliveredPrefix(dst []byte, campaign id.ID) []byte {
	return append(append(dst, spaceDelivered), campaign...)
}

// prefixEnd appends to dst the smallest key that is greater than every key that begins
// with prefix. prefix must hold a byte below 0xff; the byte of a keyspace is one.
func prefixEnd(dst, prefix []byte) []byte {
	n := len(prefix)
	for n > 0 && prefix[n-1] == 0xff {
		n--
	}
	dst = append(dst, prefix[:n]...)
	dst[len(dst)-1]++
	return dst
}

// storedRow is the value of one source row in the row index. A row with a NULL is
// stored, but it is no subscription.
type storedRow struct {
	restaurant, client id.ID
	stored             bool
}

// isSubscription reports whether the row has an entry in the join keyspace.
func (r storedRow) isSubscription() bool {
	return r.stored && r.restaurant != "" && r.client != ""
}

func (r storedRow) appendValue(dst []byte) []byte {
	return appendNullable(appendNullable(dst, r.restaurant), r.client)
}

func appendNullable(dst []byte, id id.ID) []byte {
	if id == "" {
		return append(dst, nullID)
	}
	return append(dst, id...)
}

// parseRow reads a value of the row index. It copies value, once.
func parseRow(value []byte) (storedRow, error) {
	n, ok := nullableLen(value)
	if !ok {
		return storedRow{}, fmt.Errorf("read row value %x: %w", value, ErrCorrupt)
	}
	m, ok := nullableLen(value[n:])
	if !ok || n+m != len(value) {
		return storedRow{}, fmt.Errorf("read row value %x: %w", value, ErrCorrupt)
	}
	both := string(value)
	return storedRow{restaurant: parseNullable(both[:n]), client: parseNullable(both[n:]), stored: true}, nil
}

func nullableLen(b []byte) (n int, ok bool) {
	if len(b) > 0 && b[0] == nullID {
		return 1, true
	}
	n = id.PackedLen(b)
	return n, n > 0
}

func parseNullable(packed string) id.ID {
	if packed[0] == nullID {
		return ""
	}
	return id.ID(packed)
}

// joinClient returns the client in a join key, behind the first prefix bytes; nil if
// the key is malformed.
func joinClient(key []byte, prefix int) []byte {
	rest := key[prefix:]
	n := id.PackedLen(rest)
	if n == 0 {
		return nil
	}
	return rest[:n]
}
