// Command dinnerbell notifies the subscribers of a restaurant about its
// campaigns: exactly once each, in a Kafka topic and in a Postgres table.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for an orderly end. From then on a signal has its
	// default effect again, so that a second one ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(runCommandLine(ctx, os.Args[1:], os.Stdout, os.Stderr, os.Environ()))
}
