// Command byhand does dinnerbell's job as one would write it by hand, to be
// measured beside it: consume campaigns, SELECT each one's subscribers, INSERT
// their rows in batches ON CONFLICT DO NOTHING, produce their notifications,
// commit the offsets.
//
// It is written for speed, with what a careful engineer would do: look-ups are
// sent together and answered from an index alone (see -print-index), rows of
// several campaigns share an INSERT, three INSERTs are in flight, what is
// constant in a campaign is rendered once, records are produced while the next
// rows are inserted, offsets are committed in the background.
//
// It is at least once: after a crash it repeats, to the topic, what was
// delivered since the last committed offset. It does not order anything, hold
// campaigns that start later, or keep dead letters.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// lookUpIndex makes the look-up an index-only scan, once the table is vacuumed.
const lookUpIndex = `CREATE INDEX subscribers_restaurants_look_up ON public.subscribers_restaurants (restaurant_id, client_id)`

// options say where everything is.
type options struct {
	postgres      string
	broker        string
	campaigns     string
	notifications string
	group         string
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o options
	f := flag.NewFlagSet("byhand", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.postgres, "postgres", "", "connection string of both tables' database")
	f.StringVar(&o.broker, "broker", "", "host:port")
	f.StringVar(&o.campaigns, "campaigns", "campaigns", "topic")
	f.StringVar(&o.notifications, "notifications", "notifications", "topic")
	f.StringVar(&o.group, "group", "byhand", "consumer group")
	index := f.Bool("print-index", false, "print the statement for the index that look-ups need")
	if err := f.Parse(args); err != nil {
		return 2
	}
	if *index {
		_, _ = fmt.Fprintln(stdout, lookUpIndex)
		return 0
	}
	if err := runConsumer(ctx, o); err != nil && !errors.Is(err, context.Canceled) {
		_, _ = fmt.Fprintln(stderr, "byhand:", err)
		return 1
	}
	return 0
}
