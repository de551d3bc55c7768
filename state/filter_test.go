package state

import (
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
)

// A filter holds the keys that are looked up, and answers for the others that the table may
// have them.
func TestFilterHoldsRowsOnly(t *testing.T) {
	t.Parallel()
	policy := rowFilterPolicy{bloom.FilterPolicy(10)}
	ids := makeIDs(1001, 7)
	writer := policy.NewWriter(pebble.TableFilter)
	for i, client := range ids[:1000] {
		writer.AddKey(appendRowKey(nil, 1, rowN(i)))
		writer.AddKey(appendJoinKey(nil, 1, ids[1000], client, rowN(i)))
		writer.AddKey(appendDeliveredPrefix(nil, client))
	}
	filter := writer.Finish(nil)
	if len(filter) > 1000*10/8+128 {
		t.Errorf("a filter of 1,000 rows has %d bytes", len(filter))
	}
	for i, client := range ids[:1000] {
		if !policy.MayContain(pebble.TableFilter, filter, appendRowKey(nil, 1, rowN(i))) {
			t.Fatalf("row %d is not in the filter", i)
		}
		if !policy.MayContain(pebble.TableFilter, filter, appendJoinKey(nil, 1, ids[1000], client, rowN(i))) {
			t.Fatalf("the filter denies join key %d", i)
		}
	}
	found := 0
	for i := range 1000 {
		if policy.MayContain(pebble.TableFilter, filter, appendRowKey(nil, 1, rowN(5000+i))) {
			found++
		}
	}
	if found > 100 {
		t.Errorf("the filter has %d of 1,000 rows that were never added", found)
	}
}
