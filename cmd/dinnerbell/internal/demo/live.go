package demo

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"dinnerbell/internal/testenv/workload"
)

const (
	sendEvery  = time.Second
	lateAfter  = 30 * time.Second
	headEvery  = 25 // rows between two headings
	barLength  = 12 // characters for the largest audience
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
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return watchTopic(gctx, client, arrivals) })
	g.Go(func() error {
		select {
		case <-d.daemon.Done():
			return d.daemon.ExitedError()
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error { return d.streamCampaigns(gctx, arrivals) })
	return g.Wait()
}

// streamCampaigns sends campaigns and prints their deliveries. It alone owns the
// list of campaigns under way.
func (d *deployment) streamCampaigns(ctx context.Context, arrivals <-chan []topicRecord) error {
	t := liveTable{w: d, open: map[string]*campaignDelivery{}}
	tick := time.NewTicker(sendEvery)
	defer tick.Stop()
	defer t.printTotal()
	r := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())) //nolint:gosec // sample data
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case batch := <-arrivals:
			for _, a := range batch {
				if err := t.addArrival(a); err != nil {
					return err
				}
			}
		case now := <-tick.C:
			if err := t.printLate(now); err != nil {
				return err
			}
			k := d.people.pickRestaurant(r)
			c := newCampaign(workload.CampaignID(r.Uint64()), d.people.restaurants[k], n, now)
			t.open[c.ID] = &campaignDelivery{Campaign: c.ID, Restaurant: c.Restaurant, Audience: d.people.sizes[k], content: c.Content, produced: time.Now()}
			if err := d.produceMessage(ctx, c.ID, c.JSON()); err != nil {
				return err
			}
			n++
		}
	}
}

// liveTable prints each delivery when it is complete.
type liveTable struct {
	w         *deployment
	open      map[string]*campaignDelivery // by campaign
	rows      int
	campaigns int
	notified  int
	worst     float64
}

// addArrival counts notifications. It ignores campaigns that a user has sent by
// hand.
func (t *liveTable) addArrival(a topicRecord) error {
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
	return t.printDelivery(d)
}

// printLate prints the campaigns that are incomplete for too long.
func (t *liveTable) printLate(now time.Time) error {
	for id, d := range t.open {
		if now.Sub(d.produced) < lateAfter {
			continue
		}
		delete(t.open, id)
		if err := t.printDelivery(d); err != nil {
			return err
		}
	}
	return nil
}

func (t *liveTable) printDelivery(d *campaignDelivery) error {
	t.campaigns++
	t.notified += d.Notified
	if t.w.opts.JSON {
		return t.w.printJSON(d)
	}
	out := t.w.opts.Stdout
	if t.rows%headEvery == 0 {
		if _, err := fmt.Fprintf(out, "\n%-8s  %-26s  %-10s  %-*s  %9s  %9s  %9s\n", "time", "campaign", "restaurant",
			barLength, "", "audience", "notified", "ms"); err != nil {
			return fmt.Errorf("write table: %w", err)
		}
	}
	t.rows++
	note := ""
	if d.Notified != d.Audience {
		note = "  INCOMPLETE"
	}
	if _, err := fmt.Fprintf(out, "%-8s  %-26s  %-10s  %s  %9d  %9d  %9.1f%s\n", d.produced.Format(rowTimeFmt), d.content,
		d.Restaurant[:8], drawBar(d.Audience, t.w.people.sizes[0]), d.Audience, d.Notified, d.MS, note); err != nil {
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
}
