package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/httpserve"
)

// errForeign stands for an error that exits with 3.
var errForeign = errors.New("foreign state")

func testExitCode(err error) int {
	switch {
	case errors.Is(err, errForeign):
		return 3
	case errors.Is(err, ErrArguments):
		return 2
	}
	return 1
}

// exitOf returns the exit code that came with an error of the daemon, or 1.
func exitOf(err error) int {
	if remote, ok := errors.AsType[*RemoteError](err); ok {
		return remote.Exit
	}
	return 1
}

// serveActions serves actions on a socket and returns its folder. drain does
// what a daemon does that is asked to end.
func serveActions(t *testing.T, actions map[string]Action) (dir string, drain func()) {
	t.Helper()
	dir = t.TempDir()
	l, err := Listen(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	base, drain := context.WithCancel(context.WithoutCancel(t.Context()))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	readOnly := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	ended := make(chan error, 1)
	go func() {
		ended <- (&httpserve.Server{Handler: NewHandler(base, readOnly, actions, testExitCode, log), Log: log}).Serve(ctx, l)
	}()
	t.Cleanup(func() {
		drain()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return dir, drain
}

func TestAction(t *testing.T) {
	t.Parallel()
	dir, _ := serveActions(t, map[string]Action{
		"list": func(_ context.Context, c *Call) (any, error) {
			var args struct{ First, Count int }
			if err := c.Args(&args); err != nil {
				return nil, err
			}
			for i := range args.Count {
				c.Progress("counting", int64(i), int64(args.Count))
				if err := c.Item(args.First + i); err != nil {
					return nil, err
				}
			}
			return args.Count, nil
		},
		"foreign": func(context.Context, *Call) (any, error) { return nil, errForeign },
		"fail":    func(context.Context, *Call) (any, error) { return nil, errors.New("no luck") },
		"nothing": func(context.Context, *Call) (any, error) { return nil, nil }, //nolint:nilnil // an action without a result
	})
	var items []int
	var stages []string
	count := 0
	err := Do(t.Context(), dir, "list", map[string]int{"first": 5, "count": 1000}, ReplyHandler{
		Progress: func(stage string, _, _ int64) { stages = append(stages, stage) },
		Item: func(v json.RawMessage) error {
			var n int
			err := json.Unmarshal(v, &n)
			items = append(items, n)
			return err
		},
		Result: &count,
	})
	if err != nil || count != 1000 || len(items) != 1000 || items[0] != 5 || !slices.IsSorted(items) || len(stages) == 0 || stages[0] != "counting" {
		t.Errorf("list: %v, result %d, %d items, stages %v", err, count, len(items), stages)
	}
	if err := Do(t.Context(), dir, "nothing", nil, ReplyHandler{Result: &count}); err != nil {
		t.Errorf("nothing: %v", err)
	}
	for name, want := range map[string]struct {
		exit int
		text string
	}{"foreign": {3, "foreign state"}, "fail": {1, "no luck"}, "unknown": {1, "no such action"}} {
		if err := Do(t.Context(), dir, name, nil, ReplyHandler{}); exitOf(err) != want.exit || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: exit %d: %v", name, exitOf(err), err)
		}
	}
	if err := Do(t.Context(), dir, "list", "text", ReplyHandler{}); exitOf(err) != 2 {
		t.Errorf("wrong arguments: %v", err)
	}
	if body, err := Get(t.Context(), dir, "/healthz"); err != nil || string(body) != "ok\n" {
		t.Errorf("the socket does not serve the read-only endpoints: %q, %v", body, err)
	}
	if err := Do(t.Context(), t.TempDir(), "list", nil, ReplyHandler{}); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("without a daemon: %v", err)
	}
}

// An action ends with its client, with the daemon, and not because the server's
// deadlines for short answers have passed.
func TestActionEnds(t *testing.T) {
	t.Parallel()
	began, ended := make(chan struct{}), make(chan struct{})
	dir, drain := serveActions(t, map[string]Action{"wait": func(ctx context.Context, _ *Call) (any, error) {
		began <- struct{}{}
		<-ctx.Done()
		ended <- struct{}{}
		return nil, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	back := make(chan error, 2)
	call := func(ctx context.Context) { back <- Do(ctx, dir, "wait", nil, ReplyHandler{}) }
	go call(ctx)
	<-began
	cancel()
	if err := <-back; !errors.Is(err, context.Canceled) {
		t.Errorf("the client was told %v", err)
	}
	<-ended
	go call(t.Context())
	<-began
	drain()
	<-ended
	if err := <-back; err == nil || !strings.Contains(err.Error(), "being stopped") {
		t.Errorf("the daemon drained, and the client was told %v", err)
	}
}

func TestActionMayTakeLongerThanAnAnswer(t *testing.T) {
	t.Parallel()
	srv := httptest.NewUnstartedServer(NewHandler(t.Context(), http.NotFoundHandler(), map[string]Action{
		"long": func(ctx context.Context, _ *Call) (any, error) {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(1500 * time.Millisecond):
				return "done", nil
			}
		},
	}, testExitCode, slog.New(slog.DiscardHandler)))
	srv.Config.ReadTimeout, srv.Config.WriteTimeout = time.Second, time.Second
	srv.Start()
	defer srv.Close()
	resp, err := srv.Client().Post(srv.URL+controlPath+"long", "application/json", nil)
	if err != nil {
		t.Fatal(err)
	}
	var line answerLine
	if err := errors.Join(json.NewDecoder(resp.Body).Decode(&line), resp.Body.Close()); err != nil || string(line.Result) != `"done"` {
		t.Errorf("%+v, %v", line, err)
	}
}

// A daemon that dies in the middle leaves an answer without its last line.
func TestActionThatIsCut(t *testing.T) {
	t.Parallel()
	dir, _ := serveActions(t, map[string]Action{
		"die": func(_ context.Context, c *Call) (any, error) {
			c.Progress("dying", 1, 2)
			panic(http.ErrAbortHandler) //nolint:forbidigo // closes the connection, as a crash does
		},
		"die early": func(context.Context, *Call) (any, error) { panic(http.ErrAbortHandler) }, //nolint:forbidigo // same
	})
	for _, name := range []string{"die", "die early"} {
		if err := Do(t.Context(), dir, url.PathEscape(name), nil, ReplyHandler{}); !errors.Is(err, errCut) || exitOf(err) != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The client and the log get the text of a bug in an action, not only a closed
// connection.
func TestActionThatPanics(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	var nothing *Call
	srv := httptest.NewServer(NewHandler(t.Context(), http.NotFoundHandler(), map[string]Action{
		"slip": func(context.Context, *Call) (any, error) { return nothing.body, nil },
	}, testExitCode, slog.New(slog.NewTextHandler(&log, nil))))
	resp, err := srv.Client().Post(srv.URL+controlPath+"slip", "application/json", nil)
	if err != nil {
		t.Fatal(err)
	}
	var line answerLine
	if err := errors.Join(json.NewDecoder(resp.Body).Decode(&line), resp.Body.Close()); err != nil || line.Error == nil || line.Error.Exit != 1 || !strings.Contains(line.Error.Message, "nil pointer") {
		t.Errorf("%+v, %v", line.Error, err)
	}
	srv.Close()
	if got := log.String(); !strings.Contains(got, "level=ERROR") || !strings.Contains(got, "TestActionThatPanics") {
		t.Errorf("the log has %q, want the stack", got)
	}
}
