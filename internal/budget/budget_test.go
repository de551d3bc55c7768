package budget

import "testing"

func TestLookupAndCompare(t *testing.T) {
	const text = `
# a comment
wal   480   B/notification   # why
short 1
bad   x B
`
	limit, unit, err := lookupLimit(text, "wal")
	if err != nil || limit != 480 || unit != "B/notification" {
		t.Errorf("wal: %v %q %v", limit, unit, err)
	}
	for _, name := range []string{"short", "bad", "absent", "#"} {
		if _, _, err := lookupLimit(text, name); err == nil {
			t.Errorf("%s was found", name)
		}
	}
	if compareLimit("wal", 480, limit, unit) != "" || compareLimit("wal", 480.1, limit, unit) == "" {
		t.Error("a figure passes up to its budget and not above")
	}
}
