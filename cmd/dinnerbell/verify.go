package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

// verifyCmd compares the local subscriptions of the running daemon with Postgres.
type verifyCmd struct {
	Repair bool `help:"Change the rows that differ to the values in Postgres."`
	Limit  int  `help:"Number of differing rows to show; further ones are only counted." default:"100"`
	JSON   bool `help:"One JSON object per row that differs, then one with the result."`
}

// errDifferent reports local subscriptions that differ from those of Postgres.
var errDifferent = errors.New("the local subscriptions differ from Postgres")

type verifyArguments struct {
	Repair bool `json:"repair"`
	Limit  int  `json:"limit"`
}

// differenceItem is one difference of one row in one index.
type differenceItem struct {
	Row    string    `json:"row"`   // its key, as Postgres writes it
	Index  string    `json:"index"` // rows, or join
	Wrong  string    `json:"wrong"` // missing, extra, different
	Wanted *pairItem `json:"postgres,omitempty"`
	Stored *pairItem `json:"stored,omitempty"`
}

// pairItem is a subscription; null stands for NULL and for a value that cannot be
// an id.
type pairItem struct {
	Restaurant *string `json:"restaurant"`
	Client     *string `json:"client"`
}

// verifyResult is the result of a verification; see cdc.Verified.
type verifyResult struct {
	LSN         string `json:"lsn"`
	Rows        int64  `json:"rows"`
	Differences int64  `json:"differences"`
	Repaired    int64  `json:"repaired"`
	Written     int64  `json:"written_meanwhile"`
	Unlooked    int64  `json:"not_looked_at"`
	Uncompared  int64  `json:"not_compared"`
	Miscounted  bool   `json:"miscounted"`
	Sound       bool   `json:"sound"`
}

// Help shows how it is used.
func (*verifyCmd) Help() string {
	return `The command exits with 1 if a row differs.

Examples:
  dinnerbell verify
  dinnerbell verify --repair`
}

// Run asks over the socket in state.dir and prints each difference when it is
// found.
func (c *verifyCmd) Run(ctx context.Context, a *invocation) error {
	cfg, err := config.Load(a.configFile, a.env)
	if err != nil {
		return err
	}
	shown := terminal.NewProgress(a.stderr, "rows")
	var r verifyResult
	err = control.Do(ctx, cfg.State.Dir, "verify", verifyArguments{c.Repair, c.Limit}, control.ReplyHandler{
		Progress: shown.Update, Result: &r,
		Item: func(text json.RawMessage) error { return c.printItem(a.stdout, text) },
	})
	shown.Finish()
	if err != nil {
		return err
	}
	if c.JSON {
		err = json.NewEncoder(a.stdout).Encode(r)
	} else {
		err = printVerified(a.stdout, &r)
	}
	if err != nil || r.Sound {
		return err
	}
	return r.differencesError(c.Repair)
}

// differencesError returns the error of a verification that found differences, with
// the next command.
func (r *verifyResult) differencesError(repaired bool) error {
	switch {
	case r.Unlooked > 0:
		return fmt.Errorf("%w in more places than are worth mending one by one; run: dinnerbell rebuild", errDifferent)
	case !repaired:
		return fmt.Errorf("%w; run: dinnerbell verify --repair", errDifferent)
	}
	return fmt.Errorf("%w in rows that were written meanwhile and were left alone; run it again: dinnerbell verify --repair", errDifferent)
}

func (c *verifyCmd) printItem(out io.Writer, text json.RawMessage) error {
	var d differenceItem
	if err := json.Unmarshal(text, &d); err != nil {
		return fmt.Errorf("read answer of the daemon: %w", err)
	}
	var err error
	switch {
	case c.JSON:
		_, err = fmt.Fprintf(out, "%s\n", text)
	case d.Wanted == nil:
		_, err = fmt.Fprintf(out, "row %s: %s in the %s index: %s\n", terminal.Escape(d.Row), d.Wrong, d.Index, d.Stored)
	case d.Stored == nil:
		_, err = fmt.Fprintf(out, "row %s: %s in the %s index: %s\n", terminal.Escape(d.Row), d.Wrong, d.Index, d.Wanted)
	default:
		_, err = fmt.Fprintf(out, "row %s: %s in the %s index: %s, should be %s\n", terminal.Escape(d.Row), d.Wrong, d.Index, d.Stored, d.Wanted)
	}
	return err
}

// String returns the pair as text.
func (p *pairItem) String() string {
	name := func(s *string) string {
		if s == nil {
			return "NULL"
		}
		return terminal.Escape(*s)
	}
	return "restaurant " + name(p.Restaurant) + ", client " + name(p.Client)
}

func printVerified(out io.Writer, r *verifyResult) error {
	said := []string{"no differences"}
	if !r.Sound || r.Differences > 0 {
		said[0] = terminal.Thousands(r.Differences) + " differ"
	}
	for _, more := range []struct {
		n    int64
		what string
	}{
		{r.Repaired, "repaired"},
		{r.Written, "written meanwhile and left alone"},
		{r.Unlooked, "in parts that differ and were not looked at one by one"},
		{r.Uncompared, "written meanwhile with a value that Postgres did not send, and not compared"},
	} {
		if more.n > 0 {
			said = append(said, terminal.Thousands(more.n)+" "+more.what)
		}
	}
	if r.Miscounted {
		said = append(said, "the stored number of subscriptions is wrong")
	}
	_, err := fmt.Fprintf(out, "compared %s rows at %s: %s\n", terminal.Thousands(r.Rows), r.LSN, strings.Join(said, ", "))
	return err
}

// verifyOnline is the daemon's side: an Action.
func verifyOnline(ctx context.Context, e *daemon.Engine, c *control.Call) (any, error) {
	args := verifyArguments{}
	if err := c.Args(&args); err != nil {
		return nil, err
	}
	defer showWork(c, e.Mirror)()
	shown := 0
	v, err := e.Mirror.Verify(ctx, args.Repair, func(diff *state.Difference) error {
		if shown >= args.Limit {
			return nil
		}
		shown++
		for _, f := range diff.Faults() {
			if err := c.Item(newDifference(diff.Row, f)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return verifyResult{
		LSN: v.At.String(), Rows: v.Rows, Differences: v.Differences, Repaired: v.Mended, Written: v.Written,
		Unlooked: v.Unchecked, Uncompared: v.Uncompared, Miscounted: v.Miscounted, Sound: v.Sound(),
	}, nil
}

func newDifference(row id.RowID, f state.Fault) differenceItem {
	d := differenceItem{Row: row.Text(), Index: f.Index, Wrong: f.What}
	switch f.What {
	case state.FaultExtra:
		d.Stored = newPair(f.IDPair)
	case state.FaultDifferent:
		d.Wanted, d.Stored = newPair(f.IDPair), newPair(f.Found)
	default:
		d.Wanted = newPair(f.IDPair)
	}
	return d
}

func newPair(p state.IDPair) *pairItem {
	text := func(id id.ID) *string {
		if id == "" {
			return nil
		}
		s := id.Text()
		return &s
	}
	return &pairItem{text(p.Restaurant), text(p.Client)}
}
