package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"dinnerbell/cdc/source"
	"dinnerbell/cdc/tablecopy"
	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/cmd/dinnerbell/internal/logging"
	"dinnerbell/cmd/dinnerbell/internal/status"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/state"
	"dinnerbell/state/id"
	"dinnerbell/stream/explain"
	"dinnerbell/stream/operator"

	"github.com/alecthomas/kong"
)

// Outcomes of explain that are no errors of its own.
var (
	// errNotNotified reports that the client does not have the notification.
	errNotNotified = errors.New("the client was not notified")
	// errNotKnown reports that the evidence does not tell.
	errNotKnown = errors.New("whether the client was notified is not known")
)

// explainCmd tells why a client got or did not get a campaign.
type explainCmd struct {
	Campaign   exactID `arg:"" help:"Id of the campaign."`
	Client     exactID `arg:"" help:"Id of the client."`
	Restaurant exactID `placeholder:"ID" help:"Ask about this restaurant of the campaign; default: every one."`
	JSON       bool    `help:"As JSON, one object."`
}

// exactID is an id with the bytes of the command line, and not empty. For a string, kong
// replaces bytes that are not valid UTF-8, and that is another id. No id is empty: one that
// is comes from a variable of a script that is not set, and a flag without an id would
// otherwise mean every one.
type exactID string

// Decode implements kong.MapperValue.
func (i *exactID) Decode(c *kong.DecodeContext) error {
	token, err := c.Scan.PopValue("id")
	if err != nil {
		return err
	}
	if *i = exactID(token.String()); *i == "" {
		return errors.New("an id is not empty")
	}
	return nil
}

// filledText is the value of a flag that chooses something: an empty one would choose all.
type filledText string

// Decode implements kong.MapperValue.
func (f *filledText) Decode(c *kong.DecodeContext) error {
	token, err := c.Scan.PopValue("text")
	if err != nil {
		return err
	}
	if *f = filledText(token.String()); *f == "" {
		return errors.New("the value is empty")
	}
	return nil
}

// Help shows how it is used.
func (*explainCmd) Help() string {
	return `The command exits with 0 if the client was notified, 1 if the client was not (yet), and 2 if that is not known.
It changes nothing. Without a running daemon it cannot see the history of the subscriptions.

Examples:
  dinnerbell explain 123e4567-e89b-12d3-a456-426614174003 0641f4e2-35b1-4e4b-8c1c-5a0c9f0de800
  dinnerbell explain summer-1 c-17 --restaurant r-9 --json | jq -r .verdict
  dinnerbell explain -- -odd-id- c-17`
}

// Run gathers the evidence and prints the verdict.
func (c *explainCmd) Run(ctx context.Context, a *invocation) error {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	log := a.newLogger(cfg)
	lookup := &subscriptionLookup{cfg: cfg, source: daemon.SourceConfig(cfg, log).Config}
	evidence := operator.GatherEvidence(ctx, daemon.ClaimConfig(cfg, log), explain.Question{Campaign: string(c.Campaign), Client: string(c.Client), Restaurant: string(c.Restaurant)}, operator.EvidenceOptions{
		LateSubscribers: cfg.Join.LateSubscribers,
		Owners:          func(ctx context.Context) (map[int32]*explain.Owner, string) { return askOwners(ctx, cfg) },
		Subscriptions:   lookup.findSubscriptions,
	})
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", errNotKnown, ctx.Err())
	}
	for i := range evidence.Gaps { // they hold errors of servers
		g := &evidence.Gaps[i]
		g.What, g.Tell, g.Cause = logging.Line(cfg.Hide(g.What)), logging.Line(cfg.Hide(g.Tell)), logging.Line(cfg.Hide(g.Cause))
	}
	x := explain.Explain(evidence)
	if c.JSON {
		err = json.NewEncoder(a.stdout).Encode(x)
	} else {
		err = printExplanation(a.stdout, x)
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w: write result: %w", errNotKnown, err)
	case x.Notified == nil:
		return errNotKnown
	case !*x.Notified:
		return errNotNotified
	}
	return nil
}

// askOwners returns the lanes of the running daemon, none where no daemon answers, and the
// error that keeps it from owning any.
func askOwners(ctx context.Context, cfg *config.Config) (owners map[int32]*explain.Owner, noLanes string) {
	body, err := control.Get(ctx, cfg.State.Dir, "/api/status")
	if err != nil {
		return nil, ""
	}
	var r status.Report
	if json.Unmarshal(body, &r) != nil {
		return nil, ""
	}
	owners = map[int32]*explain.Owner{}
	for _, l := range r.Lanes {
		for _, reason := range r.Reasons { // a lane that stands still need not have an error
			if text, ok := strings.CutPrefix(reason, fmt.Sprintf("lane %d: ", l.Partition)); ok && l.LastError == "" {
				l.LastError = text
			}
		}
		owners[l.Partition] = &explain.Owner{State: l.State, LastError: l.LastError, Shipped: l.Shipped, Waiting: l.WaitingForFreshness, Held: l.HeldByTransaction}
	}
	return owners, r.NoLanesError()
}

// subscriptionLookup finds out whether a client is subscribed: from the running daemon,
// else from the table of the subscriptions.
type subscriptionLookup struct {
	cfg    *config.Config
	source source.Config
}

// explainArguments are the body of the action.
type explainArguments struct {
	Client      string   `json:"client"`
	Restaurants []string `json:"restaurants"`
}

// maxTableLookups is how many restaurants the table is asked for: each may cost a scan.
const maxTableLookups = 3

func (l *subscriptionLookup) findSubscriptions(ctx context.Context, client string, restaurants []string) (found []explain.Subscription, gaps []explain.Gap) {
	err := control.Do(ctx, l.cfg.State.Dir, "explain", explainArguments{client, restaurants}, control.ReplyHandler{Result: &found})
	if err == nil {
		return found, nil
	}
	why := "no daemon is running with this state.dir"
	if !errors.Is(err, control.ErrNoDaemon) {
		why = err.Error()
	}
	gaps = append(gaps, explain.Gap{Source: explain.SourceHistory, What: "since when the client is subscribed or not: " + why, Tell: "dinnerbell explain on the machine of a running daemon"})
	db, err := source.Open(l.source)
	if err != nil {
		return nil, append(gaps, explain.Gap{Source: explain.SourceTable, What: err.Error(), Tell: "dinnerbell setup"})
	}
	for _, r := range restaurants[:min(len(restaurants), maxTableLookups)] {
		keys, err := tablecopy.FindRows(ctx, db, r, client, maxRows)
		if err != nil {
			return found, append(gaps, explain.Gap{Source: explain.SourceTable, What: "whether the client is subscribed now: " + err.Error(), Tell: "dinnerbell explain again with the daemon running"})
		}
		found = append(found, explain.Subscription{Restaurant: r, From: explain.SourceTable, Table: db.Config().QuotedTable(), Subscribed: len(keys) > 0, Rows: keys})
	}
	return found, gaps
}

// maxRows is how many row ids of one subscription are shown.
const maxRows = 3

// maxHistory is how many changes of a client's subscriptions are read.
const maxHistory = 200

// explainSubscriptions is the daemon's side: an Action.
func explainSubscriptions(ctx context.Context, e *daemon.Engine, c *control.Call) (any, error) {
	var args explainArguments
	if err := c.Args(&args); err != nil {
		return nil, err
	}
	if _, complete := e.Store.Source(); !complete {
		return nil, errors.New("the local state holds no complete snapshot yet")
	}
	out := []explain.Subscription{}
	client, err := id.Pack(args.Client)
	if err != nil {
		return out, nil //nolint:nilerr // no subscription has such an id
	}
	history, err := e.Store.History(ctx, "", client, maxHistory)
	if err != nil {
		return nil, err
	}
	for _, restaurant := range args.Restaurants {
		s, err := readSubscription(e.Store, restaurant, args.Client)
		if err != nil {
			return nil, err
		}
		addHistory(&s, history)
		out = append(out, s)
	}
	return out, nil
}

// addHistory adds the changes of one subscription. The history is complete only behind
// a change whose time is not known, and behind the last one that was read.
func addHistory(s *explain.Subscription, h *state.History) {
	if !h.On {
		return
	}
	restaurant, err := id.Pack(s.Restaurant)
	if err != nil {
		return
	}
	s.Since, s.Floor = h.Since, h.Floor.String()
	known := time.Now()
	for i := range h.Entries {
		e := &h.Entries[i]
		if e.Time.IsZero() || i == maxHistory-1 {
			s.Since, s.Floor = known, e.End.String()
			return
		}
		known = e.Time
		if e.Kind == state.LogTruncated || e.Restaurant == restaurant {
			s.History = append(s.History, explain.Change{Gone: e.Kind != state.LogAppeared, LSN: e.End.String(), Time: e.Time})
		}
	}
}

// readSubscription reads the rows of one subscription in the local state.
func readSubscription(store *state.Store, restaurant, client string) (explain.Subscription, error) {
	s := explain.Subscription{Restaurant: restaurant, From: explain.SourceState, LSN: store.EndLSN().String()}
	in, err := id.Pack(restaurant)
	if err != nil {
		return s, nil //nolint:nilerr // no subscription has such an id
	}
	for _, spelling := range spellings(client) {
		packed, err := id.Pack(spelling)
		if err != nil {
			continue
		}
		rows, err := store.LookUp(in, packed, maxRows)
		switch {
		case err != nil:
			return s, err
		case spelling == client:
			s.LSN, s.Subscribed = rows.End.String(), len(rows.IDs) > 0
			for _, row := range rows.IDs {
				s.Rows = append(s.Rows, row.Text())
			}
		case len(rows.IDs) > 0 && !s.Subscribed:
			s.Similar = spelling
		}
	}
	return s, nil
}

// spellings returns an id, and others that a person may take for the same.
func spellings(client string) []string {
	out := []string{client}
	for _, other := range []string{strings.ToLower(client), strings.ToUpper(client), strings.TrimSpace(client)} {
		if other != client && other != "" {
			out = append(out, other)
		}
	}
	return out
}

// joinGaps makes one of the gaps that have the same cause, such as a server that does not
// answer; its source names all of them.
func joinGaps(gaps []explain.Gap) (joined []explain.Gap) {
	for _, g := range gaps {
		at := slices.IndexFunc(joined, func(o explain.Gap) bool { return o.What == g.What && o.Tell == g.Tell })
		if at < 0 {
			joined = append(joined, g)
			continue
		}
		joined[at].Source += ", " + g.Source
	}
	return joined
}

// printExplanation writes the verdict, then the evidence, then what is not known.
func printExplanation(out io.Writer, x *explain.Explanation) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) } // Flush reports errors
	line("%s: %s", strings.ToUpper(strings.ReplaceAll(string(x.Verdict), "_", " ")), terminal.Escape(x.Why))
	if x.Next != "" {
		line("to change it: %s", terminal.Escape(x.Next))
	}
	line("")
	for _, l := range x.Evidence {
		at := ""
		if l.Time != nil {
			at = l.Time.Format("2006-01-02T15:04:05.000Z")
		}
		line("%s\t%s\t%s\t%s", l.Source, terminal.Escape(l.Place), at, terminal.Escape(l.What))
	}
	for _, g := range joinGaps(x.NotKnown) {
		line("not known\t%s\t\t%s; to find out: %s", g.Source, terminal.Escape(g.What), terminal.Escape(g.Tell))
	}
	return w.Flush()
}
