package tablecopy

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCutBlocks(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		blocks, step int64
		want         []string
	}{
		{0, 8, []string{" FROM t WHERE ctid >= '(0,0)'"}},
		{8, 8, []string{" FROM t WHERE ctid >= '(0,0)'"}},
		{17, 8, []string{
			" FROM t WHERE ctid >= '(0,0)' AND ctid < '(8,0)'",
			" FROM t WHERE ctid >= '(8,0)' AND ctid < '(16,0)'", " FROM t WHERE ctid >= '(16,0)'",
		}},
	} {
		var got []string
		for _, p := range cutBlocks("t", c.blocks, c.step) {
			got = append(got, p.fromClause())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%d blocks by %d: %q, want %q", c.blocks, c.step, got, c.want)
		}
	}
}

func TestCopyProgress(t *testing.T) {
	t.Parallel()
	var p Counter
	if got := p.ProgressAt(time.Now()); got != (Progress{}) || p.String() != "0 rows" {
		t.Errorf("before it begins: %+v, %s", got, &p)
	}
	p.beginCopy(400)
	began := time.Unix(0, p.began.Load())
	p.rows.Store(100)
	if got, want := p.ProgressAt(began.Add(10*time.Second)), (Progress{Rows: 100, Total: 400, Percent: 25, Rate: 10, Left: 30 * time.Second}); got != want {
		t.Errorf("after a quarter: %+v, want %+v", got, want)
	}
	p.rows.Store(500) // the estimate was too low
	if got := p.ProgressAt(began.Add(10 * time.Second)); got.Percent != 99.9 || got.Left != 0 || got.Rate != 50 {
		t.Errorf("beyond the estimate: %+v", got)
	}
	log := make(logLines, 1)
	stop := p.logEvery(time.Millisecond, slog.New(slog.NewTextHandler(log, nil)), "t")
	line := <-log
	stop()
	for _, want := range []string{"table=t", "rows=500", "of_about=400", "percent=99.9", "rows_per_second=", "left="} {
		if !strings.Contains(line, want) {
			t.Errorf("log line %q lacks %s", line, want)
		}
	}
}

// logLines hands out the lines that are written to it, and drops those that nobody
// takes.
type logLines chan string

func (l logLines) Write(p []byte) (int, error) {
	select {
	case l <- string(p):
	default:
	}
	return len(p), nil
}
