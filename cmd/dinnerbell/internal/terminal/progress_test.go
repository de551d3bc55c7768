package terminal

import (
	"strings"
	"testing"
	"time"
)

func TestProgressDrawsOnlyLongWorkOnATerminal(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	quiet := NewProgress(&out, "rows") // no terminal
	quiet.began = time.Now().Add(-time.Hour)
	quiet.Update("work", 1, 2)
	quiet.Finish()
	short := &ProgressBar{out: &out, began: time.Now()}
	short.Update("work", 1, 2)
	short.Finish()
	if out.String() != "" {
		t.Errorf("drawn: %q", out.String())
	}
	long := &ProgressBar{out: &out, began: time.Now().Add(-time.Hour)}
	for rows := range int64(5) { // more rows than the planner had estimated
		long.Update("work", rows, 3)
	}
	long.Update("other work", 5, 0)
	long.Finish()
	if out.String() == "" {
		t.Error("a bar was not drawn")
	}
}
