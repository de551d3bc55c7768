package terminal

import (
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progressDelay keeps short work from flashing a bar.
const progressDelay = 2 * time.Second

// ProgressBar draws a bar on a terminal once the work has taken a while. Elsewhere
// it draws nothing: a log has no use for a bar.
type ProgressBar struct {
	mu    sync.Mutex
	out   io.Writer // nil: not a terminal
	unit  string
	began time.Time
	bar   *progressbar.ProgressBar

	stop    chan struct{} // of the spinner; nil without one
	spinner sync.WaitGroup
}

// NewProgress makes a bar that counts in unit: "rows", "records".
func NewProgress(stderr io.Writer, unit string) *ProgressBar {
	p := &ProgressBar{unit: unit, began: time.Now()}
	if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.out = f
	}
	return p
}

// Update shows the stage of the work and how much of an estimated total (0:
// unknown) is done.
func (p *ProgressBar) Update(stage string, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out == nil || time.Since(p.began) < progressDelay {
		return
	}
	if total <= 0 {
		total = -1 // a spinner
	} else {
		total = max(total, done) // it may be an estimate of the planner
	}
	if p.bar == nil {
		p.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(p.out),
			progressbar.OptionSetItsString(p.unit),
			progressbar.OptionShowIts(), progressbar.OptionShowCount(),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish(),
		)
	}
	p.bar.Describe(stage)
	p.bar.ChangeMax64(total)
	_ = p.bar.Set64(done) // an error of the bar must not stop the work
}

// Spin shows a spinner until Finish, for work without a measure of its progress.
func (p *ProgressBar) Spin(stage string) {
	if p.out == nil {
		return
	}
	p.stop = make(chan struct{})
	p.spinner.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for n := int64(0); ; n++ {
			select {
			case <-p.stop:
				return
			case <-tick.C:
				p.Update(stage, n, 0)
			}
		}
	})
}

// Finish removes the bar.
func (p *ProgressBar) Finish() {
	if p.stop != nil {
		close(p.stop)
		p.spinner.Wait()
		p.stop = nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
