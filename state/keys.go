package state

import (
	"encoding/binary"
	"fmt"

	"dinnerbell/state/id"
)

// The keyspaces of the store. Keys compare bytewise; integers are big-endian;
// ids and row ids are packed (see [ID], [RowID]); "gen" is the generation, the
// number of the load that the rows came with.
//
//	key                                               value
//	┌────┬──────┐
//	│ 00 │ name │                                     "format", "state": see format.go
//	└────┴──────┘                                     "source": JSON of Source
//	┌────┬────────┬────────────┬────────┬─────┐
//	│ 10 │ gen u32│ restaurant │ client │ row │       empty; one per subscription row:
//	└────┴────────┴────────────┴────────┴─────┘       the join is a scan of one prefix
//	┌────┬────────┬─────┐                             ┌────────────┬────────┐
//	│ 20 │ gen u32│ row │                             │ restaurant │ client │ or 00 for NULL
//	└────┴────────┴─────┘                             └────────────┴────────┘
//	┌────┬──────┬────────┐
//	│ 30 │ name │ client │                             empty; delivered pairs, in the order
//	└────┴──────┴────────┘                            of the join
//
// Ids delimit themselves and none is a prefix of another, so concatenation
// sorts by the first id, then the second. Row ids come last and need no end.
const (
	spaceMeta      = 0x00
	spaceJoin      = 0x10
	spaceRow       = 0x20
	spaceDelivered = 0x30
)

// nullID stands for NULL in the value of a row. It is no tag of an id.
const nullID = 0x00

// genLen is the length of what every key of one generation begins with.
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

// genSpan is the half-open range of all keys of one generation in one keyspace.
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

// prefixEnd appends to dst the smallest key that is greater than every key
// that begins with prefix. prefix holds a byte below 0xff: the keyspace does.
func prefixEnd(dst, prefix []byte) []byte {
	n := len(prefix)
	for n > 0 && prefix[n-1] == 0xff {
		n--
	}
	dst = append(dst, prefix[:n]...)
	dst[len(dst)-1]++
	return dst
}

// row is what the row index stores for one source row. A row with a NULL in
// it is stored, but it is no subscription.
type row struct {
	restaurant, client id.ID
	stored             bool
}

// subscribed says whether the row has an entry in the join keyspace.
func (r row) subscribed() bool {
	return r.stored && r.restaurant != "" && r.client != ""
}

func (r row) appendValue(dst []byte) []byte {
	return appendNullable(appendNullable(dst, r.restaurant), r.client)
}

func appendNullable(dst []byte, id id.ID) []byte {
	if id == "" {
		return append(dst, nullID)
	}
	return append(dst, id...)
}

// parseRow reads a value of the row index. It copies value, once.
func parseRow(value []byte) (row, error) {
	n, ok := nullableLen(value)
	if !ok {
		return row{}, fmt.Errorf("read row value %x: %w", value, ErrCorrupt)
	}
	m, ok := nullableLen(value[n:])
	if !ok || n+m != len(value) {
		return row{}, fmt.Errorf("read row value %x: %w", value, ErrCorrupt)
	}
	both := string(value)
	return row{restaurant: nullable(both[:n]), client: nullable(both[n:]), stored: true}, nil
}

func nullableLen(b []byte) (n int, ok bool) {
	if len(b) > 0 && b[0] == nullID {
		return 1, true
	}
	n = id.PackedLen(b)
	return n, n > 0
}

func nullable(packed string) id.ID {
	if packed[0] == nullID {
		return ""
	}
	return id.ID(packed)
}

// joinClient returns the client in a join key of which prefix is the length of
// everything before it; nil if the key is malformed.
func joinClient(key []byte, prefix int) []byte {
	rest := key[prefix:]
	n := id.PackedLen(rest)
	if n == 0 {
		return nil
	}
	return rest[:n]
}
