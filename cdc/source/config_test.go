package source

import (
	"strings"
	"testing"
)

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	r := Config{
		URL: func() (string, error) { return "", nil }, Schema: "s", Table: "t", KeyColumns: []string{"i"}, ClientColumn: "c", RestaurantColumn: "r",
		Publication: "p", Slot: "ok_1",
	}
	if err := r.validate(); err != nil {
		t.Error(err)
	}
	for _, slot := range []string{"", "Upper", "a b", "x; DROP", strings.Repeat("x", 64)} {
		c := r
		c.Slot = slot
		if err := c.validate(); err == nil {
			t.Errorf("slot name %q was accepted", slot)
		}
	}
	r.Table = ""
	if err := r.validate(); err == nil {
		t.Error("a configuration without a table was accepted")
	}
}
