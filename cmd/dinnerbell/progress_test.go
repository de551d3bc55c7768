package main

import (
	"strings"
	"testing"
	"time"
)

func TestProgressDrawsOnlyLongWorkOnATerminal(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	quiet := newProgress(&out, "rows") // no terminal
	quiet.began = time.Now().Add(-time.Hour)
	quiet.update("work", 1, 2)
	quiet.finish()
	short := &progress{out: &out, began: time.Now()}
	short.update("work", 1, 2)
	short.finish()
	if out.String() != "" {
		t.Errorf("drawn: %q", out.String())
	}
	long := &progress{out: &out, began: time.Now().Add(-time.Hour)}
	for rows := range int64(5) { // more rows than the planner had estimated
		long.update("work", rows, 3)
	}
	long.update("other work", 5, 0)
	long.finish()
	if out.String() == "" {
		t.Error("a bar was not drawn")
	}
}
