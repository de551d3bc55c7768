package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/workload"
	"dinnerbell/state"
	"dinnerbell/state/id"
	"dinnerbell/stream"
)

// rows waits until the feedback table has so many rows.
func (d *deployment) rows(want int64) {
	d.t.Helper()
	envtest.Until(d.t, envtest.Patience, func() error {
		if n := d.db.Int(`SELECT count(*) FROM subscribers_feedback`); n != want {
			return fmt.Errorf("%d feedback rows of %d", n, want)
		}
		return nil
	})
}

// A replay counts a client who subscribed after a campaign as missed. The commands
// run beside a daemon, and `subscribers` also without one.
func TestReplayAndSubscribers(t *testing.T) {
	t.Parallel()
	s := newDeployment(t)
	subscribe := func(first, last int) {
		t.Helper()
		s.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || n, 'diner' FROM generate_series($1::int, $2::int) n`, first, last)
	}
	subscribe(1, 50)
	s.must("setup")
	stop, ended, _ := s.daemon()
	envtest.Until(t, envtest.Patience, func() error { return s.ready() })
	s.produce("lunch", "diner")
	s.rows(50)
	subscribe(41, 5000) // some of them twice
	s.checkPreview()

	replay := func(args ...string) (r stream.ReplayReport) {
		t.Helper()
		if err := json.Unmarshal([]byte(s.must(append([]string{"replay", "--json"}, args...)...)), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := replay("--from", "1h", "--dry-run"); !r.DryRun || r.Valid != 1 || r.Have != 50 || r.Notified != 4950 {
		t.Errorf("dry run: %+v", r)
	}
	if r := replay("--from", time.Now().Add(time.Hour).Format(time.RFC3339)); r.Messages != 0 {
		t.Errorf("from the future: %+v", r)
	}
	if r := replay("--from", "earliest", "--until", "1h"); r.Messages != 0 {
		t.Errorf("until before there was anything: %+v", r)
	}
	s.rows(50)
	if out := s.must("replay", "--from", "earliest"); !strings.Contains(out, "clients missed       4,950") {
		t.Errorf("replay: %s", out)
	}
	s.rows(5000)
	var stderr syncBuffer
	if code, _ := s.run(t.Context(), &stderr, "replay", "--from", "yesterday"); code != exitUsage || !strings.Contains(stderr.String(), "nor a checkpoint that is there") {
		t.Errorf("from nowhere: exit %d, %s", code, stderr.String())
	}
	s.checkSubscribers(5000)

	stop()
	if code := <-ended; code != 0 {
		t.Errorf("the daemon ended with %d", code)
	}
	s.checkSubscribers(5000)

	// A checkpoint holds the offsets at which the lanes would have read on.
	store, err := state.Open(s.dir, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := store.Checkpoint(state.CauseAsked, map[int32]int64{0: 1})
	if err := errors.Join(err, store.Close()); err != nil {
		t.Fatal(err)
	}
	s.daemon()
	envtest.Until(t, envtest.Patience, func() error { return s.ready() })
	s.produce("dinner", "diner")
	s.rows(10_000)
	if r := replay("--from", m.ID); r.Messages != 1 || r.Have != 5000 || r.Lanes[0].From != 1 {
		t.Errorf("from a checkpoint: %+v", r)
	}
}

// checkPreview has a campaign that 50 of 5,000 have by another message of it.
func (d *deployment) checkPreview() {
	d.t.Helper()
	file := filepath.Join(d.t.TempDir(), "campaign.json")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	edited := workload.NewCampaign("lunch", "diner", time.Now(), time.Hour)
	edited.Content = "edited"
	write(string(edited.JSON()))
	if out := d.must("preview", file); !strings.Contains(out, "would get it  4,950") || !strings.Contains(out, "would be sent at once") {
		d.t.Errorf("preview: %s", out)
	}
	write("\xff")
	var stderr syncBuffer
	if code, out := d.run(d.t.Context(), &stderr, "preview", file, "--json"); code != 1 || !strings.Contains(stderr.String(), "not valid UTF-8") || !strings.Contains(out, `"refused"`) {
		d.t.Errorf("preview of what is refused: exit %d, %s%s", code, out, stderr.String())
	}
}

func (d *deployment) checkSubscribers(n int) {
	d.t.Helper()
	for _, tc := range []struct{ args, want string }{
		{"diner --count", fmt.Sprintln(n)}, {"nobody --count", "0\n"}, {"nobody", ""}, {"nobody --count --json", "{\"subscribers\":0}\n"},
	} {
		if got := d.must(append([]string{"subscribers"}, strings.Fields(tc.args)...)...); got != tc.want {
			d.t.Errorf("subscribers %s: %q, want %q", tc.args, got, tc.want)
		}
	}
	lines := strings.Split(strings.TrimSuffix(d.must("subscribers", "diner"), "\n"), "\n")
	asJSON := json.NewDecoder(strings.NewReader(d.must("subscribers", "diner", "--json")))
	before := id.ID("")
	for _, line := range lines {
		var text string
		if err := asJSON.Decode(&text); err != nil || text != line {
			d.t.Fatalf("--json says %q where the lines say %q: %v", text, line, err)
		}
		id, err := id.Pack(line)
		if err != nil || id <= before {
			d.t.Fatalf("%q is out of order: %v", line, err)
		}
		before = id
	}
	if len(lines) != n {
		d.t.Errorf("%d subscribers, want %d", len(lines), n)
	}
}

// The forms of --from.
func TestReplayArguments(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for from, want := range map[string]replayArguments{
		"earliest":             {},
		"2h":                   {Time: now.Add(-2 * time.Hour)},
		"7d":                   {Time: now.Add(-7 * 24 * time.Hour)},
		"2026-01-01T00:00:00Z": {Time: now.Truncate(24 * time.Hour).Add(-24 * time.Hour)},
		"20260131T080000.000Z": {Checkpoint: "20260131T080000.000Z"},
	} {
		got, err := (&replayCmd{From: filledText(from)}).parseArguments(now)
		if err != nil || got != want {
			t.Errorf("--from %s: %+v, %v", from, got, err)
		}
	}
}

// Standard output alone shows that lanes of other daemons were left out.
func TestPrintReplayNamesWhatIsLeftOut(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := printReplay(&out, &stream.ReplayReport{DryRun: true, Lanes: []stream.ReplayLane{{Partition: 3, From: 7, Until: 9, NotCovered: "another daemon has it"}}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"nothing was changed", "3     7      9", "not covered"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}
