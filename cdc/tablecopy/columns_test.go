package tablecopy

import (
	"testing"

	"github.com/jackc/pgx/v5/pgtype"
)

func TestCopyColumn(t *testing.T) {
	t.Parallel()
	for typ, want := range map[uint32]string{
		pgtype.Int4OID: `"c"`, pgtype.VarcharOID: `"c"::text`, pgtype.UUIDOID: `"c"::text`,
		pgtype.BPCharOID: `CASE WHEN "c" IS NOT NULL THEN format('%s', "c") END`,
	} {
		expr, integer := ColumnExpression(`"c"`, typ)
		if expr != want || integer != (typ == pgtype.Int4OID) {
			t.Errorf("type %d: %s, integer %v; want %s", typ, expr, integer, want)
		}
	}
}
