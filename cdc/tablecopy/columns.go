package tablecopy

import (
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/cdc/source"
)

// copyColumns returns the expressions of the COPY, and which of them come as
// integers.
func copyColumns(columns []source.NeededColumn) (list [pgoutput.NeededColumns]string, integers [pgoutput.NeededColumns]bool) {
	for c := range pgoutput.NeededColumns {
		list[c], integers[c] = ColumnExpression(pgx.Identifier{columns[c].Name}.Sanitize(), columns[c].Type)
		if c != pgoutput.KeyColumn && columns[c].Type == pgtype.BPCharOID {
			list[c] = pgx.Identifier{columns[c].Name}.Sanitize() + "::text" // the cast strips the padding, as the decoder of package pgoutput does
		}
	}
	if len(columns) > pgoutput.NeededColumns {
		list[pgoutput.KeyColumn], integers[pgoutput.KeyColumn] = copyKey(columns), false
	}
	return list, integers
}

// copyKey returns the expression of a composite key: its parts joined by colons,
// with '%' and ':' in them percent-encoded, so that no two keys read alike. The
// decoder of package pgoutput does the same.
func copyKey(columns []source.NeededColumn) string {
	var parts []string
	for c, col := range columns {
		if !pgoutput.IsKeyColumn(c) {
			continue
		}
		expr, integer := ColumnExpression(pgx.Identifier{col.Name}.Sanitize(), col.Type)
		if integer {
			expr += "::text"
		}
		parts = append(parts, "replace(replace("+expr+", '%', '%25'), ':', '%3A')")
	}
	return strings.Join(parts, " || ':' || ")
}

// ColumnExpression returns the expression that selects a column such that it reads
// as pgoutput sends it, and whether it comes as an integer.
//
// pgoutput calls the type's output function. A cast to text is the same for some
// types only: it strips the blanks of char(n) and spells out booleans.
func ColumnExpression(quoted string, typ uint32) (expr string, integer bool) {
	switch typ {
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID:
		return quoted, true
	case pgtype.TextOID, pgtype.VarcharOID, pgtype.UUIDOID:
		return quoted + "::text", false
	}
	return "CASE WHEN " + quoted + " IS NOT NULL THEN format('%s', " + quoted + ") END", false
}
