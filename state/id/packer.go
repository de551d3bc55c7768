package id

import "unsafe"

// Packer packs ids into memory of its own, which it uses again after Reset:
// what it gives are views that hold until then. Clone them (strings.Clone) to
// keep them longer. The zero value is ready. It has one owner at a time.
type Packer struct {
	arena []byte
}

// keptArena is the most memory that is kept for the next ids.
const keptArena = 1 << 20

// ID is [Pack].
func (p *Packer) ID(text []byte) (ID, error) {
	at := len(p.arena)
	var uuid [uuidPackLen]byte
	if packUUID(&uuid, asString(text)) {
		p.arena = append(p.arena, uuid[:]...)
		return ID(asString(p.arena[at:])), nil
	}
	if !isID(asString(text)) {
		return Pack(string(text)) // for its error
	}
	p.arena = append(append(append(p.arena, tagText), text...), endText)
	return ID(asString(p.arena[at:])), nil
}

// RowID is [PackRow].
func (p *Packer) RowID(text []byte) RowID { return PackRow(string(text)) }

// RowNumber is [PackRow] of the decimal text of n.
func (p *Packer) RowNumber(n int64) RowID {
	at := len(p.arena)
	p.arena = appendRowInt(p.arena, n)
	return RowID(asString(p.arena[at:]))
}

// Reset ends the views.
func (p *Packer) Reset() {
	p.arena = p.arena[:0]
	if cap(p.arena) > keptArena {
		p.arena = nil
	}
}

// asString is b as a string that is not copied.
func asString(b []byte) string {
	return unsafe.String(unsafe.SliceData(b), len(b)) //nolint:gosec // whoever calls it says how long b stays as it is
}
