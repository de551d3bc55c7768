package main

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// A command that a signal ends says so, in one line, and does not blame the server that it
// was waiting for. The exit code is that of a failure; of explain, that the answer is not
// known.
func TestInterruptReadsAsOne(t *testing.T) {
	t.Parallel()
	for line, code := range map[string]int{
		"setup": exitFailed, "campaigns": exitFailed, "audit": exitFailed, "dead-letters list": exitFailed, "cancel c": exitFailed, "explain c k": exitUsage, "doctor": exitFailed,
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			var reached atomic.Bool
			silent := envtest.Serve(t, func(c net.Conn) { reached.Store(true); envtest.HoldConn(c) })
			ctx, interrupt := context.WithCancel(t.Context())
			var stdout, stderr syncBuffer
			ended := make(chan int, 1)
			go func() {
				ended <- runCommandLine(ctx, strings.Fields(line), &stdout, &stderr, []string{
					"DINNERBELL_SOURCE_URL=postgres://u@" + silent + "/de", "DINNERBELL_KAFKA_BROKERS=" + silent, "DINNERBELL_STATE_DIR=" + t.TempDir(),
				})
			}()
			envtest.Until(t, envtest.Patience, func() error {
				if !reached.Load() {
					return context.DeadlineExceeded
				}
				return nil
			})
			interrupt()
			got := <-ended
			last := strings.TrimSpace(stderr.String())
			last = last[strings.LastIndexByte(last, '\n')+1:]
			if got != code || !strings.HasPrefix(last, "dinnerbell: interrupted") || strings.Contains(stderr.String(), silent) {
				t.Errorf("exit %d, want %d: %s", got, code, stderr.String())
			}
			if stdout.String() != "" {
				t.Errorf("it says %s", stdout.String())
			}
		})
	}
}

// A server that does not answer is one gap, whatever is missing because of it, and an
// error of the sink names the key that the operator has set.
func TestDeadPostgresIsSaidOnce(t *testing.T) {
	t.Parallel()
	dead := envtest.Serve(t, nil)
	env := []string{"DINNERBELL_SOURCE_URL=postgres://u@" + dead + "/de", "DINNERBELL_KAFKA_BROKERS=" + dead, "DINNERBELL_STATE_DIR=" + t.TempDir()}
	got := dinnerbell(t, env, "explain", "c", "k")
	headline, gaps, _ := strings.Cut(got.stdout, "\n")
	if got.code != exitUsage || strings.Count(headline, "connection refused") != 1 || strings.Count(gaps, "connection refused") != 1 || !strings.Contains(gaps, "feedback, outbox, campaign, lane") {
		t.Errorf("explain: %+v", got)
	}
	got = dinnerbell(t, env, "campaigns")
	if got.code != exitFailed || !strings.Contains(got.stderr, "sink.url (as source.url)") || strings.Count(got.stderr, "\n") != 1 {
		t.Errorf("campaigns: %+v", got)
	}
	got = dinnerbell(t, append(env, "DINNERBELL_SINK_URL=postgres://u@"+dead+"/de"), "campaigns")
	if got.code != exitFailed || !strings.Contains(got.stderr, "port in sink.url (") {
		t.Errorf("campaigns with sink.url: %+v", got)
	}
}
