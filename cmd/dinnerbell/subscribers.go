package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

// subscribersCmd shows the local audience of a restaurant.
type subscribersCmd struct {
	Restaurant exactID `arg:"" help:"Id of the restaurant."`
	Count      bool    `help:"Print only their number."`
	JSON       bool    `help:"One JSON string a line, or with --count {\"subscribers\":N}."`
}

// subscribersArguments are the body of the action.
type subscribersArguments struct {
	Restaurant string `json:"restaurant"`
	Count      bool   `json:"count,omitempty"`
}

// Help shows how it is used.
func (*subscribersCmd) Help() string {
	return `Examples:
  dinnerbell subscribers 123e4567-e89b-12d3-a456-426614174000
  dinnerbell subscribers 123e4567-e89b-12d3-a456-426614174000 --count`
}

// Run asks the running daemon. Without a daemon it opens the state itself.
func (c *subscribersCmd) Run(ctx context.Context, a *invocation) error {
	cfg, err := config.Load(a.configFile, a.env)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(a.stdout, 64<<10)
	var count int64
	err = control.Do(ctx, cfg.State.Dir, "subscribers", subscribersArguments{string(c.Restaurant), c.Count}, control.ReplyHandler{
		Item: func(v json.RawMessage) error {
			var page []string
			if err := json.Unmarshal(v, &page); err != nil {
				return fmt.Errorf("read answer of the daemon: %w", err)
			}
			return c.writePage(out, page)
		},
		Result: &count,
	})
	if errors.Is(err, control.ErrNoDaemon) {
		count, err = c.listOffline(ctx, a, cfg, func(page []string) error { return c.writePage(out, page) })
	}
	if err != nil {
		return errors.Join(err, out.Flush())
	}
	switch {
	case c.Count && c.JSON:
		_, err = fmt.Fprintf(out, "{\"subscribers\":%d}\n", count)
	case c.Count:
		_, err = fmt.Fprintln(out, count)
	}
	if err = errors.Join(err, out.Flush()); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

func (c *subscribersCmd) writePage(out io.Writer, page []string) error {
	for _, client := range page {
		line := []byte(terminal.Escape(client))
		if c.JSON {
			var err error
			if line, err = json.Marshal(client); err != nil {
				return fmt.Errorf("write result: %w", err)
			}
		}
		if _, err := out.Write(append(line, '\n')); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
	}
	return nil
}

// listOffline reads a state that no daemon uses. Opening the state takes the lock.
func (c *subscribersCmd) listOffline(ctx context.Context, a *invocation, cfg *config.Config, page func([]string) error) (int64, error) {
	if _, err := os.Stat(cfg.State.Dir); errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("there is no local state: %w", err)
	}
	store, err := daemon.OpenState(cfg, a.newLogger(cfg), version, nil)
	if err != nil {
		return 0, err
	}
	n, err := readSubscribers(ctx, store, subscribersArguments{string(c.Restaurant), c.Count}, page)
	return n, errors.Join(err, store.Close())
}

// listSubscribers is the daemon's side: an Action. It sends pages of client ids,
// then their number.
func listSubscribers(ctx context.Context, e *daemon.Engine, c *control.Call) (any, error) {
	var args subscribersArguments
	if err := c.Args(&args); err != nil {
		return nil, err
	}
	return readSubscribers(ctx, e.Store, args, func(page []string) error { return c.Item(page) })
}

// subscribersPage is the number of clients in one line of the answer.
const subscribersPage = 4096

// readSubscribers lists the distinct clients of a restaurant page by page, in the
// order of the join: canonical UUIDs first. Each page is read at another moment, so
// that a slow reader keeps no snapshot open.
func readSubscribers(ctx context.Context, store *state.Store, args subscribersArguments, page func([]string) error) (n int64, err error) {
	if _, complete := store.Source(); !complete {
		return 0, errors.New("the local state holds no complete snapshot; start the daemon, or run: dinnerbell rebuild --offline")
	}
	restaurant, err := id.Pack(args.Restaurant)
	if errors.Is(err, id.ErrBadID) {
		return 0, nil // no subscription has such an id
	}
	list, after, done := &id.List{}, id.ID(""), err != nil
	for !done {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		list.Reset()
		if after, done, err = readPage(store, list, restaurant, after); err != nil {
			return n, fmt.Errorf("read subscriptions: %w", err)
		}
		n += int64(list.Len())
		if args.Count || list.Len() == 0 {
			continue
		}
		texts := make([]string, list.Len())
		for i := range texts {
			texts[i] = list.At(i).Text()
		}
		if err := page(texts); err != nil {
			return n, err
		}
	}
	return n, err
}

func readPage(store *state.Store, list *id.List, restaurant, after id.ID) (last id.ID, done bool, err error) {
	scan, err := store.NewScan()
	if err != nil {
		return after, false, err
	}
	last, done, err = scan.Undelivered(list, "", restaurant, after, subscribersPage)
	return last, done, errors.Join(err, scan.Close())
}
