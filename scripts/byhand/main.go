// Command byhand is a consumer that does dinnerbell's job as an engineer would
// write it by hand, for comparison in the benchmark. It consumes campaigns,
// SELECTs the subscribers of each one, INSERTs their rows in batches ON
// CONFLICT DO NOTHING, produces their notifications and commits the offsets.
//
// It is written for speed: look-ups are sent together and answered from an
// index alone (see -print-index), rows of several campaigns share an INSERT,
// three INSERTs run concurrently, the constant parts of a campaign are rendered
// once, records are produced while the next rows are inserted, and offsets are
// committed in the background.
//
// Delivery is at least once: after a crash, the topic gets the notifications
// since the last committed offset again. The consumer keeps no order, starts no
// campaign later, and has no dead letters.
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
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// lookUpIndex makes the look-up an index-only scan after a VACUUM of the table.
const lookUpIndex = `CREATE INDEX subscribers_restaurants_look_up ON public.subscribers_restaurants (restaurant_id, client_id)`

// options are the servers, topics and group.
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
