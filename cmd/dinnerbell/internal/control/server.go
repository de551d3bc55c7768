// Package control carries what commands ask of the running daemon, over the socket
// in state.dir and never over TCP.
//
//	POST /control/<action>     body: the arguments, JSON, or nothing
//	answer: one JSON object a line (application/x-ndjson)
//	  {"progress":{"stage":"snapshot","done":1024,"total":50000}}   now and then
//	  {"item":…}                                                    of a listing
//	  {"result":…}  or  {"error":{"message":"…","exit":3}}          the last line
//
// An answer without a last line was cut: the daemon ended. An action ends when
// its client goes away (Ctrl-C in the command) or the daemon begins to drain.
//
// The actions themselves are the daemon's.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"
)

// errDraining ends an action because the daemon was asked to end.
var errDraining = errors.New("the daemon is being stopped")

// ErrArguments reports arguments that an action does not take.
var ErrArguments = errors.New("usage: the body must be the arguments as JSON")

// controlPath begins the path of every action.
const controlPath = "/control/"

// Action serves one request of a client. Its result becomes the last line of the
// answer; an error travels with its exit code. ctx ends with the client or when the
// daemon begins to drain.
type Action func(ctx context.Context, c *Call) (result any, err error)

// answerLine is one line of an answer; one of its fields is set.
type answerLine struct {
	Progress *progressLine   `json:"progress,omitempty"`
	Item     json.RawMessage `json:"item,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *errorLine      `json:"error,omitempty"`
}

// progressLine is the progress of an action. Total 0: unknown.
type progressLine struct {
	Stage string `json:"stage"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
}

// errorLine is an error and the exit code that the command ends with.
type errorLine struct {
	Message string `json:"message"`
	Exit    int    `json:"exit"`
}

const (
	// ProgressEvery bounds how often progress travels.
	ProgressEvery = 100 * time.Millisecond
	// writePatience is how long a client may leave an answer unread.
	writePatience = 30 * time.Second
	// MaxArguments bounds the body of a request.
	MaxArguments = 1 << 20
)

// actionServer serves the actions of one daemon.
type actionServer struct {
	base     context.Context     //nolint:containedctx // ends when the daemon begins to drain
	exitCode func(err error) int // the code that the command ends with
	log      *slog.Logger
}

// NewHandler serves the actions beside the read-only endpoints. Actions end with
// ctx. exitCode returns the code that a command ends with after an error.
func NewHandler(ctx context.Context, readOnly http.Handler, actions map[string]Action, exitCode func(error) int, log *slog.Logger) http.Handler {
	s := &actionServer{base: ctx, exitCode: exitCode, log: log}
	mux := http.NewServeMux()
	mux.Handle("/", readOnly)
	mux.HandleFunc("POST "+controlPath, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no such action; the daemon and this command have different versions", http.StatusNotFound)
	})
	for name, do := range actions {
		mux.HandleFunc("POST "+controlPath+name, func(w http.ResponseWriter, r *http.Request) {
			s.serveAction(w, r, do, s.log.With("action", name))
		})
	}
	return mux
}

// serveAction runs one action.
func (s *actionServer) serveAction(w http.ResponseWriter, r *http.Request, do Action, log *slog.Logger) {
	// The server's own deadlines are for short answers. A read deadline that passes
	// would even end r.Context(), as if the client had gone away.
	rc := http.NewResponseController(w)
	args, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxArguments))
	if err = errors.Join(err, rc.SetReadDeadline(time.Time{})); err != nil {
		http.Error(w, "read arguments: "+err.Error(), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.base, func() { cancel(errDraining) })()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	c := &Call{body: args, w: w, rc: rc}
	began := time.Now()
	result, err := recoverPanic(do, log)(ctx, c)
	if errors.Is(err, context.Canceled) && errors.Is(context.Cause(ctx), errDraining) {
		err = errDraining
	}
	if err == nil {
		err = c.sendResult(result)
	} else {
		_ = c.sendLine(answerLine{Error: &errorLine{Message: err.Error(), Exit: s.exitCode(err)}}, true) // the client has gone
	}
	if err != nil {
		log.Warn("action failed", "took", time.Since(began), "error", err)
		return
	}
	log.Info("action done", "took", time.Since(began))
}

// recoverPanic turns a panic into an error, which ends the action and not the
// daemon. Without it the client would see a closed connection.
func recoverPanic(do Action, log *slog.Logger) Action {
	return func(ctx context.Context, c *Call) (result any, err error) {
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler:
				panic(p) //nolint:forbidigo // net/http's own way to close the connection
			default:
				log.Error("action panicked", "panic", p, "stack", string(debug.Stack()))
				err = fmt.Errorf("a bug in dinnerbell ended the action; the daemon goes on, and its log has the stack to report: panic: %v", p)
			}
		}()
		return do(ctx, c)
	}
}

// Call is one action under way. Its methods may be called from any goroutine.
type Call struct {
	body []byte
	rc   *http.ResponseController

	mu   sync.Mutex // guards what follows
	w    io.Writer
	last time.Time // progress was sent
}

// Args decodes the arguments into v, and leaves v alone if there are no arguments.
func (c *Call) Args(v any) error {
	if len(c.body) == 0 {
		return nil
	}
	if err := json.Unmarshal(c.body, v); err != nil {
		return fmt.Errorf("%w: %w", ErrArguments, err)
	}
	return nil
}

// Progress sends the progress of the action to the client: done of total, 0 if
// unknown. Calls that follow too fast are dropped. A client that has gone ends the
// action's context, so Progress returns no error.
func (c *Call) Progress(stage string, done, total int64) {
	c.mu.Lock()
	wait := time.Since(c.last) < ProgressEvery
	if !wait {
		c.last = time.Now()
	}
	c.mu.Unlock()
	if !wait {
		_ = c.sendLine(answerLine{Progress: &progressLine{Stage: stage, Done: done, Total: total}}, true)
	}
}

// Item sends one element of a listing. It waits while the client does not read.
func (c *Call) Item(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return c.sendLine(answerLine{Item: text}, false)
}

// sendResult sends the result.
func (c *Call) sendResult(result any) error {
	text, err := json.Marshal(result)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return c.sendLine(answerLine{Result: text}, true)
}

// sendLine writes a line; flush sends the buffer at once.
func (c *Call) sendLine(line answerLine, flush bool) error {
	text, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err = c.rc.SetWriteDeadline(time.Now().Add(writePatience))
	if err == nil {
		_, err = c.w.Write(append(text, '\n'))
	}
	if err == nil && flush {
		err = c.rc.Flush()
	}
	if err != nil {
		return fmt.Errorf("send answer: %w", err)
	}
	return nil
}
