package state

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/cockroachdb/pebble/v2"
)

// The format record, written when the store is made and never changed:
//
//	┌──────────────┬─────────────┐
//	│ "DINNERBELL" │ version u32 │
//	└──────────────┴─────────────┘
//
// A store without it is not ours ([ErrForeign]); a version above
// formatVersion is of the future ([ErrNewerFormat]). Neither is touched. There
// is no older version that could be met: version 1 is the first.
const (
	formatMagic   = "DINNERBELL"
	formatVersion = 1
)

// The state record, rewritten in every batch that changes rows or the
// position, so that rows and the LSN they bring the state to are one write:
//
//	┌─────────┬─────────┬──────────┬─────────┬──────┬─────────┐
//	│ gen u32 │ end u64 │ rows u64 │ sum u64 │ torn │ crc u32 │
//	└─────────┴─────────┴──────────┴─────────┴──────┴─────────┘
//
// rows counts subscriptions, sum is the fingerprint of all rows (fingerprint.go),
// torn is 1 while a transaction is applied in parts.
//
// The checksum (CRC-32C of what precedes it) guards against our own mistakes;
// Pebble checks its blocks itself.
type record struct {
	gen  uint32
	end  LSN
	rows int64
	sum  uint64
	torn bool
}

const recordLen = 4 + 8 + 8 + 8 + 1 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (r record) encode() []byte {
	b := make([]byte, 0, recordLen)
	b = binary.BigEndian.AppendUint32(b, r.gen)
	b = binary.BigEndian.AppendUint64(b, uint64(r.end))
	b = binary.BigEndian.AppendUint64(b, uint64(r.rows))
	b = binary.BigEndian.AppendUint64(b, r.sum)
	torn := byte(0)
	if r.torn {
		torn = 1
	}
	b = append(b, torn)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func parseRecord(b []byte) (record, error) {
	if len(b) != recordLen || crc32.Checksum(b[:recordLen-4], castagnoli) != binary.BigEndian.Uint32(b[recordLen-4:]) {
		return record{}, fmt.Errorf("read state record %x: %w", b, ErrCorrupt)
	}
	return record{
		gen:  binary.BigEndian.Uint32(b),
		end:  LSN(binary.BigEndian.Uint64(b[4:])),
		rows: int64(binary.BigEndian.Uint64(b[12:])),
		sum:  binary.BigEndian.Uint64(b[20:]),
		torn: b[28] == 1,
	}, nil
}

func encodeFormat(version uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte(formatMagic), version)
}

// checkFormat reads the format record. fresh is true for a store in which
// nothing was ever written: a crash may come between making it and the record.
func checkFormat(db *pebble.DB) (fresh bool, err error) {
	value, err := get(db, keyFormat)
	if err != nil {
		return false, err
	}
	if value == nil {
		empty, err := isEmpty(db)
		if err != nil || empty {
			return empty, err
		}
		return false, fmt.Errorf("a Pebble store without dinnerbell's mark: %w", ErrForeign)
	}
	version, ok := bytes.CutPrefix(value, []byte(formatMagic))
	if !ok || len(version) != 4 {
		return false, fmt.Errorf("a Pebble store with the mark %.40q: %w", value, ErrForeign)
	}
	if v := binary.BigEndian.Uint32(version); v > formatVersion {
		writer, err := get(db, keyWriter)
		return false, errors.Join(newerFormat(fmt.Sprintf("format %d", v), fmt.Sprintf("format %d", formatVersion), string(writer)), err)
	}
	return false, nil
}

// newerFormat names the program to start, by its version, "" if that is not known.
func newerFormat(found, known, writer string) error {
	if writer == "" {
		writer = "a newer dinnerbell"
	} else {
		writer = "dinnerbell " + writer
	}
	return fmt.Errorf("%w: it has %s, written by %s; this one reads up to %s; "+
		"start the newer one, or move the directory away to have it rebuilt", ErrNewerFormat, found, writer, known)
}

// loadMeta reads the state record and the source. ok is false if no load was
// ever finished.
func loadMeta(db *pebble.DB) (r record, src Source, ok bool, err error) {
	value, err := get(db, keyState)
	if err != nil {
		return r, src, false, err
	}
	if r, err = parseRecord(value); err != nil {
		return r, src, false, err
	}
	if value, err = get(db, keySource); err != nil || value == nil {
		return r, src, false, err
	}
	if err := json.Unmarshal(value, &src); err != nil {
		return r, src, false, fmt.Errorf("read source record: %w: %w", ErrCorrupt, err)
	}
	return r, src, true, nil
}

// get returns a copy of the value of key, nil if there is none.
func get(r pebble.Reader, key []byte) ([]byte, error) {
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

func isEmpty(db *pebble.DB) (bool, error) {
	it, err := db.NewIter(nil)
	if err != nil {
		return false, fmt.Errorf("look into store: %w", err)
	}
	found := it.First()
	return !found, errors.Join(it.Error(), it.Close())
}
