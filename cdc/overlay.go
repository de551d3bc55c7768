package cdc

import (
	"unsafe"

	"dinnerbell/cdc/tablecopy"
	"dinnerbell/state/id"
)

// maxOverlay bounds the memory of an overlay: beyond it, a verification starts
// over from a newer snapshot.
const maxOverlay = 64 << 20

// overlay holds the rows that changed between a snapshot and a later position. Laid
// over the rows of the snapshot, it gives the table as of that position.
type overlay struct {
	rows map[id.RowID]overlayRow
	// unknown are rows whose content cannot be known: Postgres did not send a value
	// that an UPDATE left alone. They are not compared.
	unknown   map[id.RowID]struct{}
	bytes     int
	truncated bool
}

// overlayRow is one row; gone if it was deleted.
type overlayRow struct {
	restaurant, client id.ID
	gone               bool
}

func newOverlay() *overlay {
	return &overlay{rows: map[id.RowID]overlayRow{}, unknown: map[id.RowID]struct{}{}}
}

// isUseless reports whether going on with the overlay makes no sense.
func (o *overlay) isUseless() bool { return o.truncated || o.bytes > maxOverlay }

// addChange notes a change.
func (o *overlay) addChange(c *id.Change) {
	switch c.Op {
	case id.Insert, id.Update:
		o.addRow(c)
	case id.Delete:
		o.setRow(c.Row, overlayRow{gone: true}, true)
	case id.Truncate:
		o.truncated = true
	}
}

func (o *overlay) addRow(c *id.Change) {
	from := c.Row
	if c.OldRow != "" {
		from = c.OldRow
	}
	row, known := overlayRow{restaurant: c.Restaurant, client: c.Client}, true
	if c.KeepRestaurant || c.KeepClient {
		var was overlayRow
		was, known = o.rows[from]
		if c.KeepRestaurant {
			row.restaurant = was.restaurant
		}
		if c.KeepClient {
			row.client = was.client
		}
	}
	if c.OldRow != "" {
		o.setRow(c.OldRow, overlayRow{gone: true}, true)
	}
	o.setRow(c.Row, row, known)
}

func (o *overlay) setRow(id id.RowID, row overlayRow, known bool) {
	if !known {
		delete(o.rows, id)
		o.unknown[id] = struct{}{}
	} else {
		delete(o.unknown, id)
		o.rows[id] = row
	}
	o.bytes += int(unsafe.Sizeof(row)) + 2*len(id) + len(row.restaurant) + len(row.client)
}

// overlaySink hands the rows of the snapshot on to another sink, except for those
// that have changed since.
type overlaySink struct {
	over *overlay
	to   tablecopy.RowSink
}

// Add implements RowSink.
func (s *overlaySink) Add(id id.RowID, restaurant, client id.ID) error {
	if _, changed := s.over.rows[id]; changed {
		return nil
	}
	if _, unknown := s.over.unknown[id]; unknown {
		return nil
	}
	return s.to.Add(id, restaurant, client)
}

// addChanged hands on the present content of the rows that changed.
func (s *overlaySink) addChanged() error {
	for id, row := range s.over.rows {
		if row.gone {
			continue
		}
		if err := s.to.Add(id, row.restaurant, row.client); err != nil {
			return err
		}
	}
	return nil
}
