package tablecopy

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/cdc/source"
)

// progressEvery is how often a copy under way is written to the log.
const progressEvery = 10 * time.Second

// Counter counts the rows of a copy of the table, which goes on meanwhile.
type Counter struct {
	rows, total atomic.Int64 // total is the planner's estimate
	began       atomic.Int64 // Unix nanoseconds; 0: it has not begun
}

// beginCopy starts the count anew.
func (p *Counter) beginCopy(total int64) {
	p.rows.Store(0)
	p.total.Store(total)
	p.began.Store(time.Now().UnixNano())
}

// Reset forgets the last copy.
func (p *Counter) Reset() {
	p.rows.Store(0)
	p.total.Store(0)
	p.began.Store(0)
}

// Counts returns the rows so far and the planner's estimate of all.
func (p *Counter) Counts() (rows, total int64) { return p.rows.Load(), p.total.Load() }

// Progress is the progress of a copy at one moment.
type Progress struct {
	Rows    int64
	Total   int64         // Postgres' estimate; more rows may come
	Percent float64       // of Total, below 100
	Rate    float64       // rows per second since the copy began
	Left    time.Duration // at that rate; 0: unknown
}

// ProgressAt computes the progress at a moment from the counts.
func (p *Counter) ProgressAt(now time.Time) Progress {
	c := Progress{Rows: p.rows.Load(), Total: p.total.Load()}
	if c.Total > 0 {
		c.Percent = min(100*float64(c.Rows)/float64(c.Total), 99.9)
	}
	took := now.Sub(time.Unix(0, p.began.Load())).Seconds()
	if p.began.Load() == 0 || took <= 0 {
		return c
	}
	c.Rate = float64(c.Rows) / took
	if left := c.Total - c.Rows; left > 0 && c.Rate > 0 {
		c.Left = time.Duration(float64(left) / c.Rate * float64(time.Second))
	}
	return c
}

// String describes the progress in the log and in errors.
func (p *Counter) String() string {
	c := p.ProgressAt(time.Now())
	if c.Total == 0 {
		return fmt.Sprintf("%d rows", c.Rows)
	}
	return fmt.Sprintf("%d of about %d rows (%.1f%%)", c.Rows, c.Total, c.Percent)
}

// logEvery writes the progress to the log until stop, which waits for the end.
func (p *Counter) logEvery(every time.Duration, log *slog.Logger, table string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for source.Sleep(ctx, every) {
			c := p.ProgressAt(time.Now())
			log.Info("copying the subscriptions", "table", table, "rows", c.Rows, "of_about", c.Total,
				"percent", fmt.Sprintf("%.1f", c.Percent), "rows_per_second", int64(c.Rate), "left", c.Left.Round(time.Second))
		}
	}()
	return func() { cancel(); <-ended }
}

// estimateRows asks the planner how many rows there are. Unlike pg_class it
// knows how large the table is now, and adds partitions up.
func (c *tableCopy) estimateRows(ctx context.Context, sql *pgx.Conn) (int64, error) {
	var text string
	if err := sql.QueryRow(ctx, "EXPLAIN (FORMAT JSON) SELECT FROM "+fromTable(c.db.Config(), c.cat)).Scan(&text); err != nil {
		return 0, fmt.Errorf("estimate rows: %w", err)
	}
	var plans []struct {
		Plan struct {
			Rows float64 `json:"Plan Rows"`
		} `json:"Plan"`
	}
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&plans); err != nil || len(plans) != 1 {
		return 0, fmt.Errorf("estimate rows: read plan %.100q: %w", text, pgoutput.ErrMalformed)
	}
	return int64(plans[0].Plan.Rows), nil
}
