package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/internal/testenv/workload"
)

const (
	sendEvery  = time.Second
	lateAfter  = 30 * time.Second
	headEvery  = 25 // rows between two headings
	barLength  = 6  // characters for the largest audience
	rowTimeFmt = "15:04:05"
)

// campaignDelivery is one campaign on its way.
type campaignDelivery struct {
	Campaign   string  `json:"campaign"`
	Restaurant string  `json:"restaurant"`
	Audience   int     `json:"audience"`
	Notified   int     `json:"notified"`
	MS         float64 `json:"ms"` // from produce to the last notification

	content  string
	produced time.Time
	late     bool // it was printed as one that is still on its way
}

// runLive sends a campaign every second and prints each one that was delivered,
// until ctx ends.
func (d *deployment) runLive(ctx context.Context) error {
	client, err := d.newConsumer(topicOut)
	if err != nil {
		return err
	}
	defer client.Close()
	arrivals := make(chan []topicRecord, 64)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return watchTopic(gctx, client, arrivals) })
	g.Go(func() error {
		defer stop() // of the watcher
		return d.streamCampaigns(gctx, arrivals)
	})
	return g.Wait()
}

// streamCampaigns sends campaigns and prints their deliveries. It alone owns the list of
// campaigns under way, and the daemon.
func (d *deployment) streamCampaigns(ctx context.Context, arrivals <-chan []topicRecord) error {
	t := liveTable{w: d, open: map[string]*campaignDelivery{}}
	if d.opts.Chaos {
		if err := t.chaos.prepare(ctx, d); err != nil {
			return err
		}
	}
	tick := time.NewTicker(sendEvery)
	defer tick.Stop()
	defer t.printTotal()
	r := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())) //nolint:gosec // sample data
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.daemon.Done():
			return d.daemon.ExitedError()
		case batch := <-arrivals:
			for i := range batch {
				if err := t.addArrival(&batch[i]); err != nil {
					return err
				}
			}
		case now := <-tick.C:
			if err := t.printLate(now); err != nil {
				return err
			}
			if over, err := t.runChaos(ctx, r, now); over || err != nil {
				return err
			}
			if err := t.send(ctx, d.people.pickRestaurant(r), r); err != nil {
				return err
			}
		}
	}
}

// send sends a campaign of the k-th restaurant.
func (t *liveTable) send(ctx context.Context, k int, r *rand.Rand) error {
	people := t.w.people
	c := newCampaign(workload.CampaignID(r.Uint64()), people.restaurants[k], t.sent, time.Now())
	t.sent++
	t.open[c.ID] = &campaignDelivery{Campaign: c.ID, Restaurant: c.Restaurant, Audience: people.sizes[k], content: c.Content, produced: time.Now()}
	if t.w.opts.Chaos {
		return t.w.sendOne(ctx, t.sent, plannedMessage{Campaign: c, notifies: true})
	}
	return t.w.produceMessage(ctx, c.ID, c.JSON())
}

// liveTable prints each delivery when it is complete.
type liveTable struct {
	w         *deployment
	open      map[string]*campaignDelivery // by campaign
	sent      int
	rows      int
	campaigns int
	notified  int
	worst     float64
	shown     bool // a notification, whole
	chaos     chaos
}

// addArrival counts notifications. It ignores campaigns that a user has sent by
// hand.
func (t *liveTable) addArrival(a *topicRecord) error {
	d, ours := t.open[a.campaign]
	if !ours {
		return nil
	}
	d.Notified += a.count
	d.MS = float64(a.at.Sub(d.produced).Microseconds()) / 1000
	if d.Notified < d.Audience {
		return nil
	}
	delete(t.open, a.campaign)
	t.worst = max(t.worst, d.MS)
	t.campaigns++
	t.notified += d.Notified
	if err := t.printDelivery(d); err != nil {
		return err
	}
	return t.showWhole(a.one)
}

// printLate prints each campaign that is incomplete for too long, once, as one that is still
// on its way.
func (t *liveTable) printLate(now time.Time) error {
	for _, d := range t.open {
		if d.late || now.Sub(d.produced) < lateAfter {
			continue
		}
		d.late = true
		if t.w.opts.JSON {
			continue // its line comes when it is delivered
		}
		if err := t.printDelivery(d); err != nil {
			return err
		}
	}
	return nil
}

// printDelivery prints a campaign's row; without a time if the campaign is still on its way.
func (t *liveTable) printDelivery(d *campaignDelivery) error {
	if t.w.opts.JSON {
		return t.w.printJSON(d)
	}
	out, style := t.w.opts.Stdout, t.w.opts.Style
	if t.rows%headEvery == 0 {
		head := fmt.Sprintf("%-8s  %-25s  %-10s %-*s %8s %8s %5s", "time", "campaign", "restaurant", barLength, "", "audience", "notified", "ms")
		if _, err := fmt.Fprintf(out, "\n%s\n", style.Paint(terminal.Bold, head)); err != nil {
			return fmt.Errorf("write table: %w", err)
		}
	}
	t.rows++
	notified, colour, took := terminal.Thousands(int64(d.Notified)), terminal.Green, fmt.Sprintf("%.0f", d.MS)
	if d.Notified != d.Audience {
		colour, took = terminal.Red, "late" // and it differs from the audience
	}
	if _, err := fmt.Fprintf(out, "%-8s  %-25.25s  %-10.8s %s %8s %s %5s\n", d.produced.Format(rowTimeFmt), d.content, d.Restaurant,
		style.Paint(terminal.Magenta, drawBar(d.Audience, t.w.people.sizes[0])), terminal.Thousands(int64(d.Audience)),
		style.Paint(colour, fmt.Sprintf("%8s", notified)), took); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

// showWhole prints the first notification of the demo as it is in the topic, once.
func (t *liveTable) showWhole(r *kgo.Record) error {
	if t.shown || t.w.opts.JSON || r == nil {
		return nil
	}
	t.shown = true
	var value bytes.Buffer
	if err := json.Indent(&value, r.Value, "  ", "  "); err != nil {
		return fmt.Errorf("read notification: %w", err)
	}
	style := t.w.opts.Style
	if _, err := fmt.Fprintf(t.w.opts.Stdout, "\n  One of them whole, %s[%d]@%d, with its key:\n  %s\n  %s\n\n", r.Topic, r.Partition, r.Offset,
		style.Paint(terminal.Bold, string(r.Key)), style.Paint(terminal.Faint, value.String())); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

// drawBar draws an audience on a logarithmic scale, padded to its full length.
func drawBar(n, largest int) string {
	part := math.Log1p(float64(n)) / math.Log1p(float64(largest))
	length := min(max(int(math.Round(part*barLength)), 1), barLength)
	return strings.Repeat("█", length) + strings.Repeat(" ", barLength-length)
}

// printTotal prints the sums at the end.
func (t *liveTable) printTotal() {
	t.w.sayf("%d campaigns, %d notifications, slowest %.0f ms", t.campaigns, t.notified, t.worst)
	if n := len(t.open); n > 0 {
		t.w.sayf("%d campaigns more were still on their way", n)
	}
	if c := &t.chaos; c.compared > 0 {
		t.w.sayf("the daemon was killed %d times; compared %d times: missing %d, doubled %d", c.kills, c.compared, c.missing, c.doubled)
	}
}
